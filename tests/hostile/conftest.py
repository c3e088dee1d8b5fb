"""The real service, as the end-to-end tests start it."""

from tests.end_to_end.conftest import start_service

__all__ = ["start_service"]
