"""Distances and certificates, each with an interval; knows no learner."""
