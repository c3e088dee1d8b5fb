"""The ledger on disk: files of entries, appended by one process and read by any.

A file is named after its first entry. When it is full the next one is begun, and files that are too
old or too many are deleted, whole and oldest first, after an entry that says so was written: where
the kept ones begin is then part of the chain.
"""

import fcntl
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from io import FileIO
from pathlib import Path

from service.errors import StorageError
from service.ledger.chain import GENESIS, Entry, LedgerBroken, Link, encode, link_of, seal, verified
from service.storage import flush_to_disk

logger = logging.getLogger(__name__)

_SUFFIX = ".jsonl"
_LOCK = "lock"
# A power cut loses what the system has not written out yet, which is this much at the most.
_SYNC_EVERY_S = 1.0
# Why a power cut's half a line was set aside.
TORN = "the last line has no end"


@dataclass(frozen=True)
class Retention:
    """How much of the past is kept.

    Attributes:
        file_bytes: A file that has reached it is followed by a new one.
        max_bytes: Of all files together; the one being written stays in any case.
        max_age: Of a file's last entry; None keeps files however old.
    """

    file_bytes: int = 16 * 1024**2
    max_bytes: int = 4 * 1024**3
    max_age: timedelta | None = None


class Ledger:
    """Appends entries; safe for several threads, refused to a second process.

    A killed process loses nothing, a power cut at most the last second. A line that a power cut
    tore, or the end of a newest file that was changed, is set aside in a file of its own, and the
    next entry says so.

    Args:
        directory: Made if it is missing.
        retention: How much is kept.
        now: The clock, for tests of what age does.

    Raises:
        StorageError: The directory can't be used, or another process writes to this ledger.

    Side effects: opens and locks files; starts a thread that writes them out.
    """

    def __init__(
        self,
        directory: Path,
        retention: Retention | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._directory = directory
        self._retention = retention or Retention()
        self._now = now
        self._guard = threading.Lock()
        self._closing = threading.Event()
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(directory)
        except OSError as error:
            raise _unusable(directory, error) from error
        try:
            path, self._last, aside = _recover(directory)
            self._file = path.open("ab", buffering=0)
            self._intact_bytes = self._file.tell()
        except OSError as error:
            os.close(self._lock)
            raise _unusable(directory, error) from error
        self._path = path
        self._is_dirty = False
        if aside is not None:
            self.append(aside.as_body())
        self._syncer = threading.Thread(target=self._sync_now_and_then, name="ledger", daemon=True)
        self._syncer.start()

    def append(self, body: Entry) -> Entry:
        """Write an entry and return it as it was written; the time is added as ``at``.

        Raises:
            StorageError: It could not be written; the ledger is as before.
        """
        with self._guard:
            self._begin_file_if_full()
            return self._write(body)

    def close(self) -> None:
        """Write everything out and let go of the files."""
        self._closing.set()
        self._syncer.join()
        with self._guard:
            if not self._file.closed:
                os.fsync(self._file.fileno())
                self._file.close()
                os.close(self._lock)

    def _write(self, body: Entry) -> Entry:
        at = self._now().isoformat(timespec="milliseconds")
        entry = seal({"at": at, **body}, self._last)
        line = encode(entry)
        try:
            if self._file.tell() != self._intact_bytes:
                # The disk took half of the last line, which would make this one unreadable.
                self._file.truncate(self._intact_bytes)
                self._file.seek(self._intact_bytes)
            _write_whole(self._file, line)
        except OSError as error:
            raise _unusable(self._path, error) from error
        self._intact_bytes += len(line)
        self._last = link_of(entry)
        self._is_dirty = True
        return entry

    def _begin_file_if_full(self) -> None:
        if self._intact_bytes < self._retention.file_bytes:
            return
        path = _path_of(self._directory, self._last.sequence + 1)
        try:
            file = path.open("ab", buffering=0)
            os.fsync(self._file.fileno())
            flush_to_disk(self._directory)
        except OSError as error:
            raise _unusable(path, error) from error
        self._file.close()
        self._file, self._path, self._intact_bytes = file, path, 0
        try:
            self._retire()
        except OSError:
            # Too much is kept then; an inspection must not fail for it.
            logger.exception("old files of the ledger in %s stay", self._directory)

    def _retire(self) -> None:
        """Delete the oldest files beyond what is kept, once an entry has said so."""
        files = ledger_files(self._directory)
        oldest = self._now() - self._retention.max_age if self._retention.max_age else None
        total = sum(path.stat().st_size for path in files)
        leaving: list[Path] = []
        for path in files[:-1]:
            changed = datetime.fromtimestamp(path.stat().st_mtime, UTC)
            if total <= self._retention.max_bytes and (oldest is None or changed >= oldest):
                break
            leaving.append(path)
            total -= path.stat().st_size
        if not leaving:
            return
        kept = files[len(leaving)]
        first = _first_sequence(kept)
        body = {"kind": "retired", "files": [path.name for path in leaving], "kept_from": first}
        self._write({**body, "kept_from_previous": _last_link(leaving[-1]).hash})
        os.fsync(self._file.fileno())
        for path in leaving:
            path.unlink()

    def _sync_now_and_then(self) -> None:
        while not self._closing.wait(_SYNC_EVERY_S):
            with self._guard:
                is_dirty, self._is_dirty = self._is_dirty, False
                descriptor = os.dup(self._file.fileno()) if is_dirty else None
            # Outside the guard, so that a slow disk holds up no answer.
            if descriptor is not None:
                try:
                    os.fdatasync(descriptor)
                except OSError:
                    logger.exception("%s could not be written out", self._path)
                finally:
                    os.close(descriptor)


def ledger_files(directory: Path) -> list[Path]:
    """Return a ledger's files, oldest first."""
    return sorted(path for path in directory.glob(f"*{_SUFFIX}") if path.stem.isdecimal())


def head_of(directory: Path) -> Link:
    """Return the newest entry's place.

    Raises:
        LedgerBroken: The newest file is not as it was written.
        StorageError: It can't be read.
    """
    for path in reversed(ledger_files(directory)):
        last = _last_link(path)
        if last.sequence >= _first_sequence(path):
            return last
    return Link()


def verified_entries(directory: Path) -> Iterator[Entry]:
    """Yield all entries, each after it was proven to be as it was written.

    A last line without its end is one being written, or torn, and is left out.

    Raises:
        LedgerBroken: An entry was changed, dropped or moved, or the oldest files are missing and no
            entry says that they were retired.
        StorageError: A file can't be read.
    """
    files = ledger_files(directory)
    if not files:
        return
    last = _anchor(files[0])
    began = last
    is_anchored = began == Link()
    for path in files:
        for entry in verified(_whole_lines(path), last, path.name):
            last = link_of(entry)
            is_anchored = is_anchored or (
                entry.get("kind") == "retired"
                and entry.get("kept_from") == began.sequence + 1
                and entry.get("kept_from_previous") == began.hash
            )
            yield entry
    if not is_anchored:
        raise LedgerBroken(
            "ledger_cut",
            f"the ledger begins with entry {began.sequence + 1} and no entry says that those "
            "before it were retired",
            file=files[0].name,
            where="line 1",
            hint="restore the missing files from a backup",
        )


def entries_after(directory: Path, sequence: int, limit: int) -> list[Entry]:
    """Return up to ``limit`` entries after one, without reading the files before it.

    Raises:
        LedgerBroken: An entry on the way is not as it was written.
        StorageError: A file can't be read.
    """
    files = ledger_files(directory)
    starts = [_first_sequence(path) for path in files]
    begin = max((i for i, start in enumerate(starts) if start <= sequence + 1), default=0)
    found: list[Entry] = []
    for path in files[begin:]:
        for entry in verified(_whole_lines(path), _anchor(path), path.name):
            if entry["sequence"] > sequence:
                found.append(entry)
                if len(found) == limit:
                    return found
    return found


def _whole_lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            for line in file:
                if line.endswith(b"\n"):
                    yield line
    except OSError as error:
        raise _unusable(path, error) from error


def _anchor(path: Path) -> Link:
    """Return the place before a file's first entry, as that entry tells it."""
    first = _first_sequence(path)
    if first == 1:
        return Link()
    for line in _whole_lines(path):
        # Who forges this one is caught by the entry before it, or by the one on retirement.
        return Link(first - 1, _claimed_previous(line))
    return Link(first - 1)


def _claimed_previous(line: bytes) -> str:
    try:
        entry = json.loads(line)
    except ValueError:
        return GENESIS
    return str(entry.get("previous", GENESIS)) if isinstance(entry, dict) else GENESIS


def _last_link(path: Path) -> Link:
    last = _anchor(path)
    for entry in verified(_whole_lines(path), last, path.name):
        last = link_of(entry)
    return last


@dataclass(frozen=True)
class _SetAside:
    """The end of a file that could not follow what came before, moved to a file of its own."""

    name: str
    size_bytes: int
    reason: str

    def as_body(self) -> Entry:
        """Return the entry that tells of it."""
        return {
            "kind": "recovered",
            "set_aside": self.name,
            "bytes": self.size_bytes,
            "reason": self.reason,
        }


def _recover(directory: Path) -> tuple[Path, Link, _SetAside | None]:
    """Return the file to append to, the newest intact entry, and what was set aside, if any."""
    files = ledger_files(directory)
    if not files:
        return _path_of(directory, 1), Link(), None
    newest = files[-1]
    if newest.stat().st_size == 0 and len(files) > 1:
        # The process died between beginning a file and writing to it.
        return newest, _last_link(files[-2]), None
    last, intact_bytes, reason = _anchor(newest), 0, TORN
    try:
        for entry in verified(_whole_lines(newest), last, newest.name):
            last = link_of(entry)
            intact_bytes += len(encode(entry))
    except LedgerBroken as error:
        # The line must go on, and what was found must stay for whoever looks into it.
        reason = f"{error.where}: {error.detail}"
        logger.exception("%s is not as it was written", newest)
    return newest, last, _set_end_aside(newest, intact_bytes, reason)


def _set_end_aside(path: Path, intact_bytes: int, reason: str) -> _SetAside | None:
    with path.open("r+b") as file:
        file.seek(intact_bytes)
        end = file.read()
        if not end:
            return None
        aside = path.with_name(f"{path.stem}-{intact_bytes}-{time.time_ns()}.aside")
        aside.write_bytes(end)
        file.truncate(intact_bytes)
    return _SetAside(aside.name, len(end), reason)


def _locked(directory: Path) -> int:
    descriptor = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise StorageError(
            "ledger_in_use",
            f"another process writes to the ledger in {directory}",
            hint="stop the other service, or give this one a storage directory of its own",
        ) from error
    return descriptor


def _path_of(directory: Path, sequence: int) -> Path:
    return directory / f"{sequence:020d}{_SUFFIX}"


def _first_sequence(path: Path) -> int:
    return int(path.stem)


def _write_whole(file: FileIO, line: bytes) -> None:
    # An unbuffered write to a disk that is nearly full may take a part.
    while line:
        line = line[file.write(line) :]


def _unusable(path: Path, error: OSError) -> StorageError:
    return StorageError(
        "ledger_not_written",
        f"{path}: {error}",
        hint="free space under the storage directory and see that the service may write there",
    )
