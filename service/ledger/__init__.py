"""What was predicted, in order, so that a change made afterwards shows."""
