"""A tar archive of stored files, made as it is sent; the same files give the same bytes."""

import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path

_CHUNK_BYTES = 1024 * 1024


def tar_of(files: Mapping[str, Path]) -> Iterator[bytes]:
    """Yield an archive of files by their names in it, piece by piece."""
    for name, path in files.items():
        header = tarfile.TarInfo(name)
        header.size = path.stat().st_size
        yield header.tobuf(tarfile.PAX_FORMAT)
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                yield chunk
        yield bytes(-header.size % tarfile.BLOCKSIZE)
    # Two empty blocks end an archive.
    yield bytes(2 * tarfile.BLOCKSIZE)
