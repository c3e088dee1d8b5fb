"""The line's side measured: latency, models swapped under load, and the runtimes that serve them."""
