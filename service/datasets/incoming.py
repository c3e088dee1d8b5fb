"""Files on their way into a data set: their order, and reading them up to a limit."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO

from data.errors import LayoutError
from data.layout import is_frame


@dataclass(frozen=True)
class IncomingFile:
    """A file on its way in.

    Attributes:
        name: As the sender named it, folders included.
        open: Opens the content for one reading.
    """

    name: str
    open: Callable[[], IO[bytes]]


def read_limited(file: IncomingFile, limit: int) -> bytes:
    """Return a file's content.

    Raises:
        LayoutError: ``file_too_large``: it has more than ``limit`` bytes.
    """
    with file.open() as stream:
        # What an archive announces as a member's size may be a lie, so it is read to the limit.
        raw = stream.read(limit + 1)
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
