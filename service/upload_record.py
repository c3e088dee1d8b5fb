"""What is known of an upload under way, small enough for one disk sector.

A running SHA-256 can't be stored, so the bytes are named piece by piece: each piece is hashed while
it arrives, and a chain of digests grows by one link.  It has the same size after any number of
pieces and is all that a restarted server needs to go on.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, fields, replace

# A write of one aligned sector is not torn by a power cut.
RECORD_BYTES = 512
_LENGTH_BYTES = 8
_CHAIN_BEGINS = bytes(hashlib.sha256().digest_size).hex()


@dataclass(frozen=True)
class UploadRecord:
    """What is known of an upload under way.

    Attributes:
        dataset_id: Where the archive goes.
        total: Bytes of the whole archive.
        sha256: Of the whole archive, if the sender has told it.
        import_id: Under which it will be imported.
        received: Bytes that are acknowledged.
        pieces_digest: Of all acknowledged pieces; see `with_piece`.
        unverified_bytes: Of these, how many came without a digest of their sender's.
        last_start: First byte of the last piece that its sender's digest vouched for.
        last_sha256: That digest; empty if there is no such piece, or another followed.
    """

    dataset_id: str
    total: int
    sha256: str | None
    import_id: str
    received: int = 0
    pieces_digest: str = _CHAIN_BEGINS
    unverified_bytes: int = 0
    last_start: int = 0
    last_sha256: str = ""

    def with_piece(self, length: int, sha256: str, *, is_verified: bool) -> "UploadRecord":
        """Return the record with one piece more.

        The new ``pieces_digest`` is the SHA-256 of the old one (32 bytes, at first zeros), the
        piece's length (8 bytes, big-endian) and its SHA-256.
        """
        link = length.to_bytes(_LENGTH_BYTES, "big") + bytes.fromhex(sha256)
        chain = hashlib.sha256(bytes.fromhex(self.pieces_digest) + link).hexdigest()
        return replace(
            self,
            received=self.received + length,
            pieces_digest=chain,
            unverified_bytes=self.unverified_bytes + (0 if is_verified else length),
            last_start=self.received,
            last_sha256=sha256 if is_verified else "",
        )

    def begun_again(self, import_id: str) -> "UploadRecord":
        """Return the record of the same upload before its first byte."""
        return UploadRecord(self.dataset_id, self.total, self.sha256, import_id)

    def dump(self) -> bytes:
        """Return the record as one sector."""
        text = json.dumps(asdict(self), separators=(",", ":")).encode()
        assert len(text) <= RECORD_BYTES  # Each field is bounded; a test takes the largest.
        return text.ljust(RECORD_BYTES)


def load_record(raw: bytes) -> UploadRecord | None:
    """Return a sector's record, None if it holds none, or one of an older service."""
    try:
        found = json.loads(raw)
    except ValueError:
        # New, or torn by a power cut before the disk had its first sector.
        return None
    if not isinstance(found, dict) or found.keys() != {
        field.name for field in fields(UploadRecord)
    }:
        return None
    return UploadRecord(**found)
