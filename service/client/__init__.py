"""The Python client of the REST API, and how folders and archives are uploaded with it."""

from service.client.client import HairlineClient, HairlineError

__all__ = ["HairlineClient", "HairlineError"]
