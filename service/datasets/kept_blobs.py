"""The files of one upload on their way to storage, and which of them were found damaged there."""

from dataclasses import replace

from data.storage import sha256_hex
from service.errors import FileOutcome
from service.storage import BlobState, Storage

_NOTES: dict[BlobState, str] = {
    "missing": "the stored file was missing and is restored",
    "damaged": "the stored file was damaged and is restored",
}
RESTORED_NOTES = frozenset(_NOTES.values())


class KeptBlobs:
    """Keeps what one uploaded file consists of: itself and the masks that are made from it.

    Args:
        storage: Where they go.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._found: set[BlobState] = set()

    def keep(self, content: bytes, sha256: str) -> None:
        """Put a file of this digest into storage, also over one that holds other bytes.

        Raises:
            StorageError: The disk is full or fails.
        """
        self._found.add(self._storage.put_blob(content, sha256))

    def keep_mask(self, content: bytes) -> str:
        """Put a mask into storage as `keep` does and return its path there."""
        sha256 = sha256_hex(content)
        self.keep(content, sha256)
        return self._storage.blob_relative(sha256)

    def expect_missing(self) -> None:
        """Take what was missing so far for new, and not for lost."""
        self._found.discard("missing")

    def tell(self, outcome: FileOutcome) -> FileOutcome:
        """Return the outcome with a note of what was restored."""
        if outcome.outcome != "known":
            self.expect_missing()
        notes = [note for state, note in _NOTES.items() if state in self._found]
        return replace(outcome, notes=(*outcome.notes, *notes))
