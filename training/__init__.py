"""A run: configuration in, events, checkpoints, report and bundle out; no rows, no HTTP."""
