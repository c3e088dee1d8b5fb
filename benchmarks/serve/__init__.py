"""The line's side measured: latency, models swapped under load, runtimes."""
