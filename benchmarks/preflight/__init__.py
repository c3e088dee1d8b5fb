"""Preflight's estimate of a run's peak memory against what the run then took."""
