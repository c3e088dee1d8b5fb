"""Short prefixed identifiers: the prefix says what a string in a log or a URL names."""

import secrets
from typing import Literal

Prefix = Literal["ds", "itm", "lbl", "imp", "ver", "job", "cmp", "mdl", "req", "wrk"]

# Base 32 without letters that are misread on a printed label (Crockford's alphabet).
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
LENGTH = 16


def new_id(prefix: Prefix) -> str:
    """Return a random identifier such as ``ds_4k7z…`` with 80 bits of randomness."""
    return f"{prefix}_" + "".join(secrets.choice(_ALPHABET) for _ in range(LENGTH))
