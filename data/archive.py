"""Reading zip and tar archives whose maker is not trusted.

A bad member does not spoil the good ones: it is listed, and opening it raises.  What makes the
archive itself dangerous or unreadable ends the reading.
"""

import io
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, NoReturn, Self

from backports import zstd

from data.errors import ArchiveError, DataError
from data.layout import clean_name

if TYPE_CHECKING:
    from typing_extensions import Buffer

_ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"

# What the readers raise on damaged input.
_DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    zstd.ZstdError,
    EOFError,
    OSError,
    ValueError,
    NotImplementedError,
    RuntimeError,
)

_EXTENDED_HEADERS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
_MAX_EXTENDED_HEADER_BYTES = 1_000_000
# Tape records, the reason for the padding, were 1 MB at the most.
_MAX_PADDING_BYTES = 16_000_000


@dataclass(frozen=True)
class ArchiveLimits:
    """Bounds on what an archive may unpack to.

    Attributes:
        max_members: Files in the archive.
        max_total_bytes: All files unpacked; 100 GB are 20,000 uncompressed 5-megapixel frames.
        max_member_bytes: One file unpacked.
        max_ratio: Unpacked to packed size.  Mask pictures in BMP pack 1 : 500 honestly.
        ratio_floor_bytes: The ratio counts from this unpacked size on: little can't do harm.
    """

    max_members: int = 500_000
    max_total_bytes: int = 100_000_000_000
    max_member_bytes: int = 1_000_000_000
    max_ratio: float = 1000.0
    ratio_floor_bytes: int = 256_000_000


DEFAULT_ARCHIVE_LIMITS = ArchiveLimits()


@dataclass(frozen=True)
class ArchiveMember:
    """One file of an archive.

    Attributes:
        name: A safe relative name; of a bad member the name as far as it can be shown.
        size: Unpacked bytes, as the archive declares.
        open: Returns a binary stream that never gives more than ``size`` bytes and raises
            ArchiveError where the data are damaged.  Valid until the next member is asked for.
        problem: Why the member can't be opened; ``open`` raises it.
    """

    name: str
    size: int
    open: Callable[[], IO[bytes]]
    problem: DataError | None = None


def open_archive(
    path: Path, limits: ArchiveLimits = DEFAULT_ARCHIVE_LIMITS
) -> Iterator[ArchiveMember]:
    """List an archive's files in their order; folders are skipped.

    Args:
        path: A .zip, .tar, .tar.gz or .tar.zst file; the content decides, not the suffix.
        limits: Bounds on what it may unpack to.

    Yields:
        Each file; bad ones (unsafe name, link, device, encrypted, a second of the same name, too
        large) carry their ``problem``.

    Raises:
        ArchiveError: The file is no such archive, is damaged, holds no file at all, or exceeds the
            limits as a whole.
    """
    name = path.name
    try:
        with path.open("rb") as file:
            head = file.read(4)
        packed_bytes = path.stat().st_size
    except OSError as error:
        raise ArchiveError(
            "file_unreadable",
            f"The archive can't be read: {error.strerror}.",
            file=name,
            hint="Check the path and the file's permissions.",
        ) from error
    budget = _Budget(name, packed_bytes, limits)
    if head in _ZIP_MAGIC:
        members = _read_zip(path, budget)
    else:
        members = _read_tar(path, budget, is_zstd=head == _ZSTD_MAGIC)
    try:
        yield from members
    except _DAMAGE as error:
        raise _damaged(name, error) from error
    if budget.members == 0:
        raise ArchiveError(
            "archive_empty",
            "The archive holds no file.",
            file=name,
            hint="Pack the folder that contains the pictures.",
        )


def _damaged(name: str, error: Exception) -> ArchiveError:
    return ArchiveError(
        "archive_damaged",
        f"The archive is damaged or no zip, tar, tar.gz or tar.zst file: {error}.",
        file=name,
        hint="Pack or upload it again; an interrupted upload leaves a part of a file.",
    )


@dataclass
class _Budget:
    """Counts what an archive unpacks to, and which names it has used."""

    archive: str
    packed_bytes: int
    limits: ArchiveLimits
    members: int = 0
    total_bytes: int = 0
    names: set[str] = field(default_factory=set)

    def add(self, size: int) -> None:
        """Count one file, or refuse the archive."""
        self.members += 1
        self.total_bytes += size
        limits = self.limits
        reason = None
        if self.members > limits.max_members:
            reason = f"more than {limits.max_members} files"
        elif self.total_bytes > limits.max_total_bytes:
            reason = f"more than {limits.max_total_bytes} bytes unpacked"
        elif (
            self.total_bytes > limits.ratio_floor_bytes
            and self.total_bytes > limits.max_ratio * self.packed_bytes
        ):
            reason = f"more than {limits.max_ratio:g} times its packed size"
        if reason is not None:
            raise ArchiveError(
                "archive_too_large",
                f"The archive holds {reason}.",
                file=self.archive,
                hint="Split it into several archives.",
            )

    def check_member(self, name: str, size: int) -> tuple[str, DataError | None]:
        """Return a member's safe name and what is wrong with the member, if anything is."""
        try:
            clean = clean_name(name)
        except DataError as error:
            return error.file or "", error
        if size > self.limits.max_member_bytes:
            return clean, _bad(
                "member_too_large",
                f"The file unpacks to {size} bytes; {self.limits.max_member_bytes} are allowed.",
                clean,
                "Leave it out of the archive.",
            )
        if clean in self.names:
            return clean, _bad(
                "duplicate_member",
                "The archive holds two files of this name.",
                clean,
                "Pack the folder again; the first of the two is taken.",
            )
        self.names.add(clean)
        return clean, None


def _bad(code: str, detail: str, name: str, hint: str) -> ArchiveError:
    return ArchiveError(code, detail, file=name, hint=hint)


def _refuse(problem: DataError) -> Callable[[], IO[bytes]]:
    def refuse() -> NoReturn:
        raise problem

    return refuse


def _not_a_file(name: str, kind: str) -> ArchiveError:
    return _bad(
        "member_not_a_file",
        f"The member is a {kind}, not a file.",
        name,
        "Pack the files themselves, with links followed.",
    )


def _read_zip(path: Path, budget: _Budget) -> Iterator[ArchiveMember]:
    with zipfile.ZipFile(path) as archive:
        infos = [info for info in archive.infolist() if not info.is_dir()]
        # Members that share their packed bytes unpack to far more than the file could hold.
        if sum(info.compress_size for info in infos) > budget.packed_bytes:
            raise zipfile.BadZipFile("its members overlap")
        # The whole directory is known beforehand, so a bomb is refused before any of it is read.
        for info in infos:
            budget.add(info.file_size)
        for info in infos:
            name, problem = budget.check_member(info.orig_filename, info.file_size)
            mode = info.external_attr >> 16
            if problem is None and stat.S_IFMT(mode) not in (0, stat.S_IFREG):
                problem = _not_a_file(name, "link" if stat.S_ISLNK(mode) else "special file")
            if problem is None and info.flag_bits & 0x1:
                problem = _bad(
                    "member_encrypted",
                    "The file is encrypted.",
                    name,
                    "Pack the archive without a password.",
                )
            yield _member(name, info.file_size, problem, partial(archive.open, info))


@contextmanager
def _open_tar(path: Path, *, is_zstd: bool) -> Iterator[tarfile.TarFile]:
    with ExitStack() as stack:
        if not is_zstd:
            yield stack.enter_context(tarfile.open(path, "r:*", tarinfo=_StrictTarInfo))
            return
        # The standard library's tarfile reads zstd from Python 3.14 on.
        stream = stack.enter_context(zstd.ZstdFile(path))
        yield stack.enter_context(tarfile.open(fileobj=stream, mode="r:", tarinfo=_StrictTarInfo))


def _read_tar(path: Path, budget: _Budget, *, is_zstd: bool) -> Iterator[ArchiveMember]:
    # A plain read of the members in order; a compressed tar can't be read in any other.
    with _open_tar(path, is_zstd=is_zstd) as archive:
        while (info := archive.next()) is not None:
            # Without this, tarfile keeps every header it has seen.
            archive.members.clear()  # type: ignore[attr-defined]  # typeshed leaves it out.
            if info.isdir():
                continue
            budget.add(info.size)
            name, problem = budget.check_member(info.name, info.size)
            if problem is None and (not info.isreg() or info.issparse()):
                kind = "link" if info.issym() or info.islnk() else "special file"
                problem = _not_a_file(name, kind)
            yield _member(name, info.size, problem, partial(archive.extractfile, info))
        _check_tar_end(archive)


def _check_tar_end(archive: tarfile.TarFile) -> None:
    """Read the padding behind the last member: a codec's checksum lies behind it."""
    for _ in range(_MAX_PADDING_BYTES // tarfile.RECORDSIZE):
        if archive.fileobj is None or not archive.fileobj.read(tarfile.RECORDSIZE):
            return
    raise tarfile.ReadError(f"more than {_MAX_PADDING_BYTES} bytes follow its end")


def _member(
    name: str, size: int, problem: DataError | None, open_raw: Callable[[], IO[bytes] | None]
) -> ArchiveMember:
    if problem is not None:
        return ArchiveMember(name, size, _refuse(problem), problem)
    return ArchiveMember(name, size, lambda: _open_checked(name, size, open_raw))


def _open_checked(name: str, size: int, open_raw: Callable[[], IO[bytes] | None]) -> IO[bytes]:
    try:
        raw = open_raw()
    except _DAMAGE as error:
        raise _member_damaged(name, str(error)) from error
    if raw is None:
        raise _member_damaged(name, "it has no data")
    return io.BufferedReader(_CheckedStream(raw, name, size))


def _member_damaged(name: str, reason: str) -> ArchiveError:
    return _bad(
        "member_damaged",
        f"The file can't be unpacked: {reason}.",
        name,
        "Pack or upload the archive again.",
    )


class _CheckedStream(io.RawIOBase):
    """Turns a codec's errors into ours and holds a member to its declared size."""

    def __init__(self, raw: IO[bytes], name: str, size: int) -> None:
        self._raw = raw
        self._name = name
        self._left = size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "Buffer") -> int:
        view = memoryview(buffer)
        try:
            # One byte more than is left shows that the member declares too little.
            piece = self._raw.read(min(len(view), self._left + 1))
        except _DAMAGE as error:
            raise _member_damaged(self._name, str(error)) from error
        if len(piece) > self._left:
            raise _member_damaged(self._name, "it is larger than it declares")
        if not piece and self._left and view.nbytes:
            raise _member_damaged(self._name, f"its last {self._left} bytes are missing")
        self._left -= len(piece)
        view[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _StrictTarInfo(tarfile.TarInfo):
    """A tar header that is not read past damage: tarfile itself takes it for the end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            info = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            # A block of zeros is how a tar file ends.
            if len(buf) == tarfile.BLOCKSIZE and not any(buf):
                raise
            raise tarfile.ReadError(f"cut off or damaged ({error})") from error
        # tarfile reads these into memory whole, whatever size they declare.
        if info.type in _EXTENDED_HEADERS and info.size > _MAX_EXTENDED_HEADER_BYTES:
            raise tarfile.ReadError(f"an extended header of {info.size} bytes")
        return info
