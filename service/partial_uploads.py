"""Uploads that arrive in pieces: an archive that grows, and beside it how much of it is durable.

An upload is two files of the spool: the archive under the name its import will use, and a record
of one disk sector.  The record is rewritten in place after the bytes it speaks of are on disk, so
neither a killed process nor a power cut leaves it ahead of them; what lies behind the recorded
length was never acknowledged and is cut off.  Nothing that is acknowledged is read again.  Whoever
works on an upload holds a lock on its record.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, Protocol

from service.errors import Conflict, InvalidRequest, StorageError
from service.ids import new_id
from service.storage import Storage, disk_errors, flush_to_disk
from service.upload_record import RECORD_BYTES, UploadRecord, load_record

# At most so much of a piece without a digest is lost with a killed server.
SYNC_EVERY_BYTES = 8 * 1024**2
# Running digests of uploads under way; of one that was pushed out the whole's digest is not known.
_DIGESTS_KEPT = 256


class _Digest(Protocol):
    def update(self, data: bytes, /) -> None: ...
    def copy(self) -> "_Digest": ...
    def hexdigest(self) -> str: ...


class Part:
    """One upload, locked for as long as it is open."""

    def __init__(
        self, storage: Storage, path: Path, descriptor: int, digests: "_RunningDigests"
    ) -> None:
        self._storage = storage
        self._path = path
        self._descriptor = descriptor
        self._digests = digests
        self.record = self._read_record()

    @property
    def archive(self) -> Path:
        """Where the bytes are; only after `begin`."""
        return self._storage.archive_path(self.begun().import_id)

    @property
    def received(self) -> int:
        """Bytes that are durable."""
        return 0 if self.record is None else self.record.received

    @property
    def is_complete(self) -> bool:
        """Whether the last byte has arrived."""
        record = self.record
        return record is not None and record.received == record.total

    def begin(self, dataset_id: str, total: int, sha256: str | None) -> None:
        """Record what is about to arrive, or check that it is what was announced before.

        Raises:
            Conflict: It is another file.
            StorageError: The disk is full or fails.
        """
        record = self.record
        if record is None:
            self._write_record(UploadRecord(dataset_id, total, sha256, new_id("imp")))
            flush_to_disk(self._path.parent)
            return
        told_apart = None not in (record.sha256, sha256) and record.sha256 != sha256
        if (record.dataset_id, record.total) != (dataset_id, total) or told_apart:
            raise _other_file(record)
        if sha256 is not None and record.sha256 is None:
            self._write_record(replace(record, sha256=sha256))

    def restart(self) -> None:
        """Begin with the first byte again."""
        if self.received:
            self.archive.unlink(missing_ok=True)
            # Under a new name, so that no server takes an older running digest for this one's.
            self._write_record(self.begun().begun_again(new_id("imp")))

    def holds(self, start: int, stop: int, sha256: bytes) -> bool:
        """Tell whether the last piece is this one, whose acknowledgement its sender missed."""
        record = self.record
        return (
            record is not None
            and (record.last_start, record.received) == (start, stop)
            and record.last_sha256 == sha256.hex()
        )

    def append(self, chunks: Iterable[bytes], sha256: bytes | None = None) -> None:
        """Write a piece behind what is there.

        A piece with a digest is kept whole or not at all.  Of one without, what arrived is kept,
        also when ``chunks`` raises, and counted as unverified.

        Args:
            chunks: The piece.
            sha256: What its sender says it is.

        Side effects: what is kept is durable when this returns or lets ``chunks`` raise.

        Raises:
            InvalidRequest: The piece has another digest than its sender says.
            StorageError: The disk is full or fails; what was durable before is kept.
        """
        record = self.begun()
        with disk_errors(self.archive):
            self._check_room(record.total - record.received)
            descriptor = os.open(self.archive, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            with os.fdopen(descriptor, "r+b") as file:
                if os.fstat(descriptor).st_size > record.received:
                    file.truncate(record.received)
                file.seek(record.received)
                if sha256 is None:
                    self._write_as_it_comes(file, chunks)
                else:
                    self._write_whole(file, chunks, sha256)

    def whole_sha256(self, *, may_read: bool) -> str | None:
        """Return the SHA-256 of all bytes, None if it is not known without reading them.

        They were hashed as they arrived, unless the server was restarted in between.

        Args:
            may_read: Whether to read the file then.
        """
        digest = self._digests.take(self.begun().import_id, self.begun().received)
        if digest is not None:
            return digest.hexdigest()
        if not may_read:
            return None
        with disk_errors(self.archive), self.archive.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def hand_over(self) -> None:
        """Forget the upload; its archive belongs to an import now."""
        if self.record is not None:
            self._digests.take(self.record.import_id, -1)
        self._path.unlink(missing_ok=True)
        self.record = None

    def discard(self) -> None:
        """Remove the upload and its bytes."""
        if self.record is not None:
            self.archive.unlink(missing_ok=True)
        self.hand_over()

    def begun(self) -> UploadRecord:
        """Return what `begin` has recorded."""
        if self.record is None:
            raise ValueError(f"{self._path.name}: nothing was begun")
        return self.record

    def _write_whole(self, file: BinaryIO, chunks: Iterable[bytes], sha256: bytes) -> None:
        record = self.begun()
        running = self._digests.take(record.import_id, record.received)
        ahead = None if running is None else running.copy()
        piece, length = hashlib.sha256(), 0
        try:
            for chunk in chunks:
                file.write(chunk)
                piece.update(chunk)
                if ahead is not None:
                    ahead.update(chunk)
                length += len(chunk)
            check_piece(piece.digest(), sha256, record.received)
            self._acknowledge(file, record.with_piece(length, sha256.hex(), is_verified=True))
            running = ahead
        finally:
            if self.received == record.received:
                # A disk that fails here too leaves bytes that the next piece cuts off.
                with contextlib.suppress(OSError):
                    file.truncate(record.received)
            if running is not None:
                self._digests.keep(record.import_id, self.received, running)

    def _write_as_it_comes(self, file: BinaryIO, chunks: Iterable[bytes]) -> None:
        running = self._digests.take(self.begun().import_id, self.received)
        part, length, written = hashlib.sha256(), 0, self.received
        try:
            for chunk in chunks:
                file.write(chunk)
                part.update(chunk)
                if running is not None:
                    running.update(chunk)
                length += len(chunk)
                written += len(chunk)
                if length >= SYNC_EVERY_BYTES:
                    # Taken out before: a sync that failed may succeed in vain when asked again.
                    synced, synced_length = part, length
                    part, length = hashlib.sha256(), 0
                    self._acknowledge_unverified(file, synced_length, synced)
        finally:
            # Kept under the number of bytes hashed: where a disk failed, fewer are acknowledged.
            if running is not None:
                self._digests.keep(self.begun().import_id, written, running)
            if length:
                self._acknowledge_unverified(file, length, part)

    def _acknowledge_unverified(self, file: BinaryIO, length: int, digest: _Digest) -> None:
        record = self.begun().with_piece(length, digest.hexdigest(), is_verified=False)
        self._acknowledge(file, record)

    def _acknowledge(self, file: BinaryIO, record: UploadRecord) -> None:
        file.flush()
        os.fsync(file.fileno())
        if self.received == 0:
            # The archive is new, and its name is not durable with its bytes.
            flush_to_disk(self.archive.parent)
        self._write_record(record)

    def _check_room(self, missing: int) -> None:
        free = shutil.disk_usage(self._path.parent).free
        if missing > free:
            raise StorageError(
                "storage_full",
                f"the rest of the archive has {missing} bytes, the storage has {free} left",
                hint="Free space under the storage directory, then go on with the upload; "
                "what has arrived is kept.",
            )

    def _read_record(self) -> UploadRecord | None:
        record = load_record(os.pread(self._descriptor, RECORD_BYTES, 0))
        if record is None:
            return None
        archive = self._storage.archive_path(record.import_id)
        size = archive.stat().st_size if archive.exists() else 0
        # Bytes that were durable are gone: a person's doing, or a disk's.
        return record if size >= record.received else record.begun_again(record.import_id)

    def _write_record(self, record: UploadRecord) -> None:
        with disk_errors(self._path):
            os.pwrite(self._descriptor, record.dump(), 0)
            os.fsync(self._descriptor)
        self.record = record


class PartialUploads:
    """The uploads under way of one installation.

    Args:
        storage: Where they are kept.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._digests = _RunningDigests()

    @contextlib.contextmanager
    def open(self, key: str) -> Iterator[Part]:
        """Yield the upload that its sender calls ``key``, new or begun before.

        Raises:
            Conflict: Another request is at work on it.
            StorageError: The disk is full or fails.
        """
        name = hashlib.sha256(key.encode()).hexdigest()[:32]
        path = self._storage.spool_dir / f"{name}.upload"
        descriptor = _locked(path)
        try:
            part = Part(self._storage, path, descriptor, self._digests)
            try:
                yield part
            finally:
                if part.record is None:
                    path.unlink(missing_ok=True)
        finally:
            os.close(descriptor)


def import_ids_under_way(storage: Storage, *, older_than: float) -> set[str]:
    """Return which imports' archives are arriving.

    Side effects: forgets uploads that got their last byte before ``older_than`` (seconds since the
    epoch); their archives then belong to nobody.
    """
    found = set()
    for path in storage.spool_dir.glob("*.upload"):
        # Another process may have removed it in between, or be at work on it.
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime < older_than:
                path.unlink()
                continue
            with contextlib.suppress(ValueError, TypeError, KeyError):
                found.add(json.loads(path.read_bytes())["import_id"])
    return found


class _RunningDigests:
    """SHA-256 of what has arrived of each upload, from request to request."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, tuple[int, _Digest]] = OrderedDict()

    def take(self, import_id: str, received: int) -> _Digest | None:
        """Take a digest out, None unless it is of exactly so many bytes."""
        count, digest = self._kept.pop(import_id, (0, None))
        if received == 0:
            return hashlib.sha256()
        return digest if count == received else None

    def keep(self, import_id: str, received: int, digest: _Digest) -> None:
        """Keep a digest; the one that nobody asked for the longest makes room."""
        self._kept[import_id] = (received, digest)
        if len(self._kept) > _DIGESTS_KEPT:
            self._kept.popitem(last=False)


def _locked(path: Path) -> int:
    while True:
        with disk_errors(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise Conflict(
                "upload_busy",
                "another request is sending this upload",
                where="header/Idempotency-Key",
                hint="Wait until it ends, ask what has arrived (Content-Range: bytes */TOTAL), and "
                "go on from there.",
            ) from None
        # Whoever had the lock before may have removed the file that was locked.
        if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
            return descriptor
        os.close(descriptor)


def check_piece(found: bytes, told: bytes, start: int) -> None:
    """Refuse a piece that is not what its sender says.

    Raises:
        InvalidRequest: ``content_digest_mismatch``.
    """
    if found != told:
        raise InvalidRequest(
            "content_digest_mismatch",
            f"the bytes that arrived have the SHA-256 {found.hex()}, another than Content-Digest "
            "says; none of them is kept",
            where="header/Content-Digest",
            hint=f"They were changed on their way: send them again from byte {start}.",
        )


def _other_file(record: UploadRecord) -> Conflict:
    return Conflict(
        "upload_differs",
        f"another file of {record.total} bytes for {record.dataset_id} is arriving under this key",
        where="header/Idempotency-Key",
        hint="Use a new key for each file, or give the other upload up with DELETE.",
    )
