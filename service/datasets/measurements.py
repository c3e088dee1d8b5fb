"""Measuring a version's stored files once, beside the requests that ask for it.

A file is named by its digest, so what was measured of it holds in every version of every data set.
It is kept with the size and the time of the file's last change: a file that was touched since is
read again, an untouched one never.  Nothing is owed to a process that was killed: what it had not
written is measured when it is asked for next.
"""

import logging
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from sqlalchemy import Engine, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from data import DataError, Item, Manifest, MaskLabels
from data.health import METHOD, FileProblem, FrameMeasurement, measure_item
from data.storage import read_verified
from service.database.engine import session_factory
from service.database.tables import Item as FrameRow
from service.database.tables import Measurement, now_utc
from service.errors import NotReady
from service.storage import Storage

logger = logging.getLogger(__name__)

# Decoding holds a frame of up to 600 MB; the codecs leave the interpreter's lock.
_THREADS = 2
# Files measured between two transactions: progress is seen about once a second.
_BATCH = 16
# SQLite takes 32,766 parameters at the most.
_KEYS_PER_QUERY = 1000
# These may pass without the file being touched.
_RETRIED = frozenset({"file_unreadable"})
# The stored bytes are not those that were uploaded; other errors are the picture's own.
_LOST = frozenset({"file_changed", "file_unreadable"})


@dataclass(frozen=True)
class StoredFile:
    """A file of a version.

    Attributes:
        sha256: Its digest.
        path: Relative to the storage root.
        frame: The frame's item; None for a mask, which is only verified.
        name: Of the frame that it belongs to.
    """

    sha256: str
    path: str
    frame: Item | None
    name: str


@dataclass(frozen=True)
class MeasuredVersion:
    """What is known of a version's files.

    Attributes:
        frames: Measurements by SHA-256.
        unreadable_frames: Frames that can't be read, by name.
        unreadable_labels: Frames whose mask can't be read, by name.
        pending: Files not measured yet, or touched since.
        retried: Files that could not be read for a reason that may have passed.
        oldest: When the file that was read longest ago was read; None before the first.
    """

    frames: Mapping[str, FrameMeasurement]
    unreadable_frames: Mapping[str, FileProblem]
    unreadable_labels: Mapping[str, FileProblem]
    pending: tuple[StoredFile, ...]
    retried: tuple[StoredFile, ...]
    oldest: datetime | None


def stored_files(manifest: Manifest) -> tuple[StoredFile, ...]:
    """Return the files of a version: its frames and their masks."""
    frames = [StoredFile(item.sha256, item.file, item, item.name) for item in manifest.items]
    masks = [
        StoredFile(item.labels.sha256, item.labels.file, None, item.name)
        for item in manifest.items
        if isinstance(item.labels, MaskLabels)
    ]
    return (*frames, *masks)


def look_up(session: Session, storage: Storage, files: Sequence[StoredFile]) -> MeasuredVersion:
    """Return what is known of files; none is opened, each is looked for on disk."""
    rows = _rows(session, sorted({file.sha256 for file in files}))
    frames: dict[str, FrameMeasurement] = {}
    unreadable: dict[bool, dict[str, FileProblem]] = {True: {}, False: {}}
    pending, retried, times = [], [], []
    for file in files:
        stamp = _stamp(storage.root / file.path)
        row = rows.get(file.sha256)
        if stamp is None:
            detail = "The file is gone from the storage folder."
            unreadable[file.frame is not None][file.name] = FileProblem("file_missing", detail)
        elif row is None or not _is_current(row, file, stamp):
            pending.append(file)
        else:
            times.append(row.measured_at)
            if row.error is not None:
                unreadable[file.frame is not None][file.name] = FileProblem(**row.error)
                retried += [file] if row.error["code"] in _RETRIED else []
            elif file.frame is not None:
                frames[file.sha256] = _measurement(row)
    return MeasuredVersion(
        frames=frames,
        unreadable_frames=unreadable[True],
        unreadable_labels=unreadable[False],
        pending=tuple(pending),
        retried=tuple(retried),
        oldest=min(times, default=None),
    )


def lost_files(session: Session, storage: Storage, items: Sequence[FrameRow]) -> set[str]:
    """Return the digests of frames whose stored file is no longer theirs, as far as is known.

    No file is opened: it is missing, has another size, or was found damaged when it was measured
    and has not been touched since.
    """
    stamps = {item.sha256: _stamp(storage.blob_path(item.sha256)) for item in items}
    lost = {i.sha256 for i in items if (stamps[i.sha256] or (None,))[0] != i.byte_count}
    digests = list(stamps)
    for start in range(0, len(digests), _KEYS_PER_QUERY):
        keys = digests[start : start + _KEYS_PER_QUERY]
        measured = session.execute(
            select(
                Measurement.sha256,
                Measurement.byte_count,
                Measurement.modified_ns,
                Measurement.error,
            ).where(Measurement.sha256.in_(keys))
        )
        lost |= {
            row.sha256
            for row in measured
            if row.error is not None
            and row.error["code"] in _LOST
            and (row.byte_count, row.modified_ns) == stamps[row.sha256]
        }
    return lost


class FrameMeasurer:
    """Measures files in threads of its own; `close` ends them within a frame's time.

    Args:
        engine: The installation's database.
        storage: Its files.
    """

    def __init__(self, engine: Engine, storage: Storage) -> None:
        self._writes = session_factory(engine)
        self._storage = storage
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="measure")
        self._lock = threading.Lock()
        self._under_way: dict[str, Future[None]] = {}
        self._stop = threading.Event()

    def measure(self, files: Iterable[StoredFile], *, wait_s: float) -> None:
        """Begin with those files that are not under way, and wait for all up to ``wait_s``.

        Side effects: a row for each file, in the background.

        Raises:
            NotReady: The service is stopping.
        """
        with self._lock:
            if self._stop.is_set():
                raise NotReady("stopping", "the service is stopping and measures nothing more")
            wanted = {file.sha256: file for file in files}
            new = [file for digest, file in wanted.items() if digest not in self._under_way]
            for batch in _batches(new):
                future = self._pool.submit(self._measure_batch, batch)
                self._under_way |= {file.sha256: future for file in batch}
            futures = {self._under_way[digest] for digest in wanted}
        wait(futures, timeout=wait_s)

    def close(self) -> None:
        """Leave what has not begun and wait for what has."""
        with self._lock:
            self._stop.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _measure_batch(self, batch: Sequence[StoredFile]) -> None:
        rows = []
        try:
            for file in batch:
                if self._stop.is_set():
                    break
                row = _measure(self._storage.root, file)
                rows += [row] if row is not None else []
            self._keep(rows)
        except Exception:
            # The edge of the thread: the next report asks for these files again.
            logger.exception("%d files could not be measured", len(batch))
        finally:
            with self._lock:
                for file in batch:
                    del self._under_way[file.sha256]

    def _keep(self, rows: Sequence[Measurement]) -> None:
        for row in rows:
            # Where writers overlap another one may have measured the same file meanwhile.
            try:
                with self._writes.begin() as session:
                    session.merge(row)
            except IntegrityError:
                logger.info("%s was measured twice at once", row.sha256)


def _batches(files: Sequence[StoredFile]) -> Iterator[Sequence[StoredFile]]:
    return (files[start : start + _BATCH] for start in range(0, len(files), _BATCH))


def _measure(root: Path, file: StoredFile) -> Measurement | None:
    """Return the row of a file as it is now, None if it is gone."""
    stamp = _stamp(root / file.path)
    if stamp is None:
        return None
    row = Measurement(
        sha256=file.sha256,
        method=METHOD,
        byte_count=stamp[0],
        modified_ns=stamp[1],
        # A merge leaves what is not set: each column of an older row is replaced.
        error=None,
        numbers=None,
        layout=None,
        detail=None,
        measured_at=now_utc(),
    )
    try:
        if file.frame is None:
            read_verified(root, file.path, file.sha256)
            return row
        measured = asdict(measure_item(file.frame, root))
    except DataError as error:
        row.error = {"code": error.code, "detail": error.detail}
        return row
    row.layout, row.detail = measured.pop("layout"), measured.pop("detail")
    row.numbers = measured
    return row


def _stamp(path: Path) -> tuple[int, int] | None:
    """Return size and time of the last change, None if there is no such file."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    except OSError:
        # Reading it says why it can't be looked at.
        return 0, 0
    return status.st_size, status.st_mtime_ns


def _is_current(row: Measurement, file: StoredFile, stamp: tuple[int, int]) -> bool:
    # A picture may also be somebody's mask, and was then perhaps only verified.
    is_enough = file.frame is None or row.numbers is not None or row.error is not None
    return is_enough and row.method == METHOD and (row.byte_count, row.modified_ns) == stamp


def _measurement(row: Measurement) -> FrameMeasurement:
    assert row.numbers is not None
    assert row.layout is not None
    assert row.detail is not None
    return FrameMeasurement(**row.numbers, layout=row.layout, detail=row.detail)


def _rows(session: Session, digests: Sequence[str]) -> dict[str, Measurement]:
    rows: dict[str, Measurement] = {}
    for start in range(0, len(digests), _KEYS_PER_QUERY):
        keys = digests[start : start + _KEYS_PER_QUERY]
        found = session.scalars(select(Measurement).where(Measurement.sha256.in_(keys)))
        rows |= {row.sha256: row for row in found}
    return rows
