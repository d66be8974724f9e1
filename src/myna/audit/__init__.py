"""What an API leaks, and what no copy of a kind can be."""
