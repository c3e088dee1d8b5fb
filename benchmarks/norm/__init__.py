"""Benchmarks of the normalizations: accuracy on real defects, cost, and what converts."""
