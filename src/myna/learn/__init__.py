"""Teacher, settings and generator in; student and report out."""
