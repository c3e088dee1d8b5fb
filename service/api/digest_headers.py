"""``Content-Digest`` and ``Repr-Digest`` (RFC 9530): what a sender says of its bytes.

Both are dictionaries of byte sequences by algorithm (RFC 9651).  Only SHA-256 is checked; other
algorithms beside it are ignored, as RFC 9530 lets a recipient do.  A field without SHA-256, or one
that can't be parsed, is refused and not ignored: its sender wants to be told of damage.
"""

from collections.abc import Sequence
from typing import Any

from http_sf import parse

from service.errors import InvalidRequest

_SHA256_BYTES = 32
_SHOWN = 100


def read_digest(lines: Sequence[str] | None, header: str) -> bytes | None:
    """Return the SHA-256 that a field tells, None without the field.

    Args:
        lines: The field's lines; they are one list (RFC 9110, section 5.3).
        header: The field's name.

    Raises:
        InvalidRequest: It is malformed or tells no SHA-256.
    """
    if not lines:
        return None
    value = ", ".join(lines)
    try:
        members: Any = parse(value.encode("latin-1"), tltype="dictionary")
    except ValueError as error:
        raise _bad_digest(header, f"is no dictionary of digests: {error}", value) from error
    if "sha-256" not in members:
        told = ", ".join(members) or "nothing"
        raise _bad_digest(header, f"tells {told}, and sha-256 is what is checked", value)
    digest, _parameters = members["sha-256"]
    if not isinstance(digest, bytes) or len(digest) != _SHA256_BYTES:
        raise _bad_digest(header, f"holds no SHA-256 of {_SHA256_BYTES} bytes", value)
    return digest


def _bad_digest(header: str, reason: str, value: str) -> InvalidRequest:
    return InvalidRequest(
        f"{header.lower().replace('-', '_')}_invalid",
        f"{header} {reason}: {value[:_SHOWN]!r}",
        where=f"header/{header}",
        hint="Write it as sha-256=:BASE64:, the colons included (RFC 9530).",
    )
