"""What may be asked of a model, and what it cost."""
