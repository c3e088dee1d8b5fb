"""The service: REST API, database, worker, inference, command line, client and demo."""
