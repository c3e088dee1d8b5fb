"""Measurements that print their own tables."""
