"""Logit space: extended logit matrices, their spectra, and models in log-probability space."""
