"""Where files live: blobs by digest, manifests, runs, bundles, and a spool for uploads under way.

Rows name files by digest, so a file is complete on disk before any row speaks of it.  A process
killed in between leaves a blob that no row names, which the next upload of the same file adopts,
or a spooled file, which `Storage.clear_spool` removes.
"""

import contextlib
import errno
import hashlib
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, TypeVar

from service.errors import NotFound, StorageError

T = TypeVar("T")

BlobState = Literal["whole", "missing", "damaged"]

# Of a stored file, compared at a time.
_COMPARED_BYTES = 1024**2

_SHA256 = re.compile(r"[0-9a-f]{64}")
_ID = re.compile(r"[a-z]{2,4}_[0-9a-z]{1,27}")


@dataclass(frozen=True)
class StoredBlob:
    """A file's content as storage holds it."""

    sha256: str
    byte_count: int


class Storage:
    """The directory that holds every file of one installation.

    Side effects: creates ``root`` and its folders.

    Raises:
        StorageError: ``root`` can't be made or written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        with disk_errors(self.root):
            for folder in ("blobs", "exports", "kept", "manifests", "runs", "bundles", "spool"):
                (self.root / folder).mkdir(parents=True, exist_ok=True)

    @property
    def spool_dir(self) -> Path:
        """Files under way: on the blobs' file system, so that a rename is atomic."""
        return self.root / "spool"

    @property
    def serving_mark(self) -> Path:
        """The file whose time of change tells when the last frame came to be inspected."""
        return self.root / "serving"

    def put_blob(self, content: bytes, sha256: str) -> BlobState:
        """Keep the content under its digest and return how it was found.

        A file that holds other bytes, because the disk or a person changed it, is replaced.
        Comparing takes about as long as hashing while the system has the file in memory.

        Args:
            content: The whole file.
            sha256: Of ``content``.

        Returns:
            ``missing`` for new content, ``whole`` if nothing was written, ``damaged`` if the file
            had another size or other bytes, or could not be read.

        Side effects: the blob is complete and flushed to disk when this returns.

        Raises:
            StorageError: The disk is full or fails.
        """
        path = self.blob_path(sha256)
        state = _state_of(path, content)
        if state != "whole":
            with self._spooled(lambda file: file.write(content)) as spooled:
                self._publish(spooled, path)
        return state

    def put_kept(self, content: bytes, sha256: str) -> None:
        """Keep a frame of the line at `kept_path`: apart from blobs, since it is deleted in time.

        Raises:
            StorageError: The disk is full or fails.
        """
        path = self.kept_path(sha256)
        if _state_of(path, content) != "whole":
            with self._spooled(lambda file: file.write(content)) as spooled:
                self._publish(spooled, path)

    def put_manifest(self, digest: str, write: Callable[[Path], None]) -> Path:
        """Let ``write`` fill a temporary path, then put it at `manifest_path` in one step.

        The same manifest again replaces the file, which may have been damaged since.
        """
        target = self.manifest_path(digest)
        with self._spooled(lambda _file: None) as spooled:
            write(spooled)
            flush_to_disk(spooled)
            self._publish(spooled, target)
        return target

    def blob_path(self, sha256: str) -> Path:
        """Return where the blob of this digest is, or would be."""
        return self.root / self.blob_relative(sha256)

    def blob_relative(self, sha256: str) -> str:
        """Return the blob's POSIX path relative to ``root``, as manifests record it."""
        return f"blobs/{sha256[:2]}/{_checked_digest(sha256)}"

    def read_blob(self, sha256: str) -> bytes:
        """Return a blob's content.

        Raises:
            StorageError: A row names the blob but the disk does not have it, or fails.
        """
        path = self.blob_path(sha256)
        with disk_errors(path):
            return path.read_bytes()

    def kept_path(self, sha256: str) -> Path:
        """Return where a kept frame of this digest is, or would be."""
        return self.root / "kept" / sha256[:2] / _checked_digest(sha256)

    def manifest_path(self, digest: str) -> Path:
        """Return where the manifest of this digest is, or would be."""
        return self.root / "manifests" / f"{_checked_digest(digest)}.jsonl"

    def run_dir(self, job_id: str) -> Path:
        """Return the run directory of a job."""
        return self.root / "runs" / _checked_id(job_id)

    def bundle_dir(self, model_id: str) -> Path:
        """Return the bundle directory of a model."""
        return self.root / "bundles" / _checked_id(model_id)

    def exports_dir(self, model_id: str) -> Path:
        """Return where a model's exported files and what was measured of them are, or would be."""
        return self.root / "exports" / _checked_id(model_id)

    def archive_path(self, import_id: str) -> Path:
        """Return where the archive of an import waits until the import has ended."""
        return self.spool_dir / f"{_checked_id(import_id)}.archive"

    def put_archive(
        self, import_id: str, chunks: Iterable[bytes], check: Callable[[Path], T]
    ) -> tuple[StoredBlob, T]:
        """Keep an archive at `archive_path` if ``check`` of the complete file does not raise.

        Returns:
            Digest and size, and what ``check`` returned.
        """
        copy = _HashingCopy(chunks)
        with self._spooled(copy.write) as spooled:
            checked = check(spooled)
            self._publish(spooled, self.archive_path(import_id))
        return copy.blob, checked

    def check_writable(self) -> None:
        """Write and remove a small file.

        Raises:
            StorageError: The disk is full, read-only or fails.
        """
        with self._spooled(lambda file: file.write(b"hairline")):
            pass

    def clear_spool(self, *, older_than: float) -> int:
        """Remove abandoned uploads last written before ``older_than`` (seconds since the epoch).

        Archives stay: their imports own them.

        Returns:
            How many files were removed.
        """
        removed = 0
        for path in self.spool_dir.glob("*.part"):
            # Another process may have finished or removed the file in between.
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < older_than:
                    path.unlink()
                    removed += 1
        return removed

    @contextlib.contextmanager
    def _spooled(self, write: Callable[[BinaryIO], object]) -> Iterator[Path]:
        path = self.spool_dir / f"{secrets.token_hex(16)}.part"
        with disk_errors(path):
            try:
                with path.open("xb") as file:
                    write(file)
                    file.flush()
                    os.fsync(file.fileno())
                yield path
            finally:
                path.unlink(missing_ok=True)

    def _publish(self, spooled: Path, target: Path) -> None:
        target.parent.mkdir(exist_ok=True)
        spooled.replace(target)
        # The rename itself is durable only once its directory is.
        flush_to_disk(target.parent)


class _HashingCopy:
    """Copies chunks to a file and remembers what they were."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = chunks
        self._digest = hashlib.sha256()
        self._byte_count = 0

    def write(self, file: BinaryIO) -> None:
        for chunk in self._chunks:
            self._digest.update(chunk)
            self._byte_count += len(chunk)
            file.write(chunk)

    @property
    def blob(self) -> StoredBlob:
        return StoredBlob(self._digest.hexdigest(), self._byte_count)


def _state_of(path: Path, content: bytes) -> BlobState:
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size != len(content):
                return "damaged"
            for start in range(0, len(content), _COMPARED_BYTES):
                # A memoryview would save the copy but is compared byte by byte.
                if file.read(_COMPARED_BYTES) != content[start : start + _COMPARED_BYTES]:
                    return "damaged"
    except FileNotFoundError:
        return "missing"
    except OSError:
        # A bad sector, say; writing it anew tells whether the disk can be used at all.
        return "damaged"
    return "whole"


def _checked_digest(digest: str) -> str:
    if not _SHA256.fullmatch(digest):
        raise ValueError(f"{digest!r} is no SHA-256 in lower-case hexadecimal")
    return digest


def _checked_id(identifier: str) -> str:
    # Identifiers arrive in URLs and become folder names.
    if not _ID.fullmatch(identifier):
        raise NotFound("not_found", f"{identifier!r} is no identifier of this service")
    return identifier


def flush_to_disk(path: Path) -> None:
    """Wait until a file, or a folder's list of names, would survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an operating system's error about ``path`` into a StorageError with a remedy."""
    try:
        yield
    except OSError as error:
        full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        raise StorageError(
            "storage_full" if full else "storage_failed",
            f"{path}: {error.strerror or error}",
            hint="Free space under the storage directory, then send the request again."
            if full
            else "Check that the storage directory exists and that the service may write to it.",
        ) from error
