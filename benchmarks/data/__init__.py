"""Benchmarks of the data room and of the way into it."""
