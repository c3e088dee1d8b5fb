"""An export as a tar archive, written piece by piece."""

import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

_END = b"\0" * 2 * tarfile.BLOCKSIZE


@dataclass(frozen=True)
class ExportedFile:
    """One file of an export.

    Attributes:
        name: Relative, with forward slashes.
        size: Bytes.
        read: Returns the content; a stored file is verified first.
    """

    name: str
    size: int
    read: Callable[[], bytes]


def tar_size(files: Iterable[ExportedFile]) -> int:
    """Return how many bytes `tar_stream` yields."""
    return sum(len(_header(file)) + file.size + _padding(file) for file in files) + len(_END)


def tar_stream(files: Iterable[ExportedFile]) -> Iterator[bytes]:
    """Yield an uncompressed tar archive piece by piece; one picture is in memory at a time.

    Equal files give equal bytes: times and owners are left out.

    Raises:
        DataError: A stored file is gone or is another one than the version's.
    """
    for file in files:
        yield _header(file)
        yield file.read()
        yield b"\0" * _padding(file)
    yield _END


def _header(file: ExportedFile) -> bytes:
    info = tarfile.TarInfo(file.name)
    info.size = file.size
    return info.tobuf(tarfile.PAX_FORMAT)


def _padding(file: ExportedFile) -> int:
    return -file.size % tarfile.BLOCKSIZE
