"""Data sets: what arrives, what is kept, and the versions frozen from it."""
