"""The process that runs what the API only writes down: training jobs and imports."""
