"""The report of a run for people: plain sentences, plots and one HTML page."""
