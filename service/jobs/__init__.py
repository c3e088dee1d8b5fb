"""Training jobs: their states, rows, specifications and run directories."""
