"""Files on their way into a data set: their order, and reading them up to a limit."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import IO

from sqlalchemy.orm import Session

from data.errors import LayoutError
from data.layout import SampleKey, is_frame
from service.datasets.kept_blobs import KeptBlobs
from service.errors import FileOutcome

# Writes an outcome down in the transaction of the file's rows, so that one can't be without the
# other.
Journal = Callable[[Session, FileOutcome], None]


@dataclass(frozen=True)
class IncomingFile:
    """A file on its way in.

    Attributes:
        name: As the sender named it, folders included.
        open: Opens the content for one reading.
    """

    name: str
    open: Callable[[], IO[bytes]]


@dataclass(frozen=True)
class Sample:
    """A file whose name has been understood and whose content has been read.

    Attributes:
        name: Its clean name.
        key: What it is.
        raw: Its content.
        blobs: Keeps it.
        journal: Writes down what becomes of it.
        sha256: Of its content.
    """

    name: str
    key: SampleKey
    raw: bytes
    blobs: KeptBlobs
    journal: Journal | None = None
    sha256: str = field(init=False)

    def __post_init__(self) -> None:
        """Name the content."""
        object.__setattr__(self, "sha256", hashlib.sha256(self.raw).hexdigest())

    def write_down(self, session: Session, outcome: FileOutcome) -> None:
        """Write the outcome down with the rows of the session's transaction."""
        if self.journal is not None:
            self.journal(session, self.blobs.tell(outcome))


@dataclass
class ReadCount:
    """What was read of files.

    Attributes:
        files: How many were opened and read.
        byte_count: What came out of them.
    """

    files: int = 0
    byte_count: int = 0


def read_limited(file: IncomingFile, limit: int, count: ReadCount) -> bytes:
    """Return a file's content, and add it to what was read.

    Raises:
        LayoutError: ``file_too_large``: it has more than ``limit`` bytes.
    """
    with file.open() as stream:
        # What an archive announces as a member's size may be a lie, so it is read to the limit.
        raw = stream.read(limit + 1)
    count.files += 1
    count.byte_count += len(raw)
    if len(raw) > limit:
        raise LayoutError(
            "file_too_large",
            f"The file has more than {limit} bytes.",
            file=file.name,
            where=f"byte {limit}",
            hint="Compress the picture without loss (PNG), or raise HAIRLINE_MAX_FILE_BYTES.",
        )
    return raw


def upload_order(names: Sequence[str]) -> list[int]:
    """Return the indices of the names, frames first, so that labels find them."""
    return sorted(range(len(names)), key=lambda index: not is_frame(names[index]))
