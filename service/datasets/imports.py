"""Importing an archive: kept and checked by the API, unpacked file by file by the worker.

Nothing is unpacked to disk: each member goes the way of an uploaded file.  A worker killed in
between leaves an import whose accepted files are rows already; the next worker goes on behind the
last progress it finds, and the few files after it are found to be known.
"""

import contextlib
import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, select, update
from sqlalchemy.orm import Session

from data import ArchiveError, DataError
from data.archive import ArchiveMember, open_archive
from data.layout import is_frame, is_yolo_list
from service.database.engine import session_factory
from service.database.tables import Import
from service.datasets.repository import get_dataset
from service.datasets.resources import ImportResource
from service.datasets.uploads import IncomingFile, Uploads
from service.errors import FileOutcome, InvalidRequest, NotFound, PayloadTooLarge, ServiceError
from service.ids import new_id
from service.partial_uploads import import_ids_under_way
from service.settings import Settings
from service.storage import Storage

logger = logging.getLogger(__name__)

# What errors call the request's body, which has no name of its own.
ARCHIVE_NAME = "archive"

# How long an archive without an import is kept, should somebody be about to add the row.
ABANDONED_AFTER_S = 24 * 3600
_PROGRESS_EVERY_S = 1.0

# What macOS and Windows put into folders without being asked; nobody means to upload it.
_LITTER = frozenset({".DS_Store", "Thumbs.db", "desktop.ini"})
_PENDING = ("queued", "running")


def queue_import(
    engine: Engine,
    storage: Storage,
    settings: Settings,
    dataset_id: str,
    chunks: Iterable[bytes],
    *,
    sha256: str | None = None,
) -> Import:
    """Receive an archive, check it (also against its digest, if given), and queue its import.

    Side effects: the archive is on disk before the row that names it; neither is there after an
    error.

    Raises:
        NotFound: There is no such data set.
        InvalidRequest: The archive is larger than the settings allow, or has another digest.
        ArchiveError: The archive is empty, damaged, or none at all.
        StorageError: The disk is full or fails.
    """
    with session_factory(engine, writes=False)() as session:
        get_dataset(session, dataset_id)
    import_id = new_id("imp")
    limited = _limited(chunks, settings.max_archive_bytes)
    archive, total = storage.put_archive(import_id, limited, count_members)
    if sha256 not in (None, archive.sha256):
        storage.archive_path(import_id).unlink()
        raise digest_mismatch(archive.sha256)
    row = new_import(import_id, dataset_id, archive.sha256, total)
    with session_factory(engine).begin() as session:
        session.add(row)
    return row


def new_import(import_id: str, dataset_id: str, archive_sha256: str, total: int) -> Import:
    """Return the row that queues an archive's import."""
    return Import(
        id=import_id,
        dataset_id=dataset_id,
        status="queued",
        archive_sha256=archive_sha256,
        total=total,
    )


def import_resource(row: Import) -> ImportResource:
    """Return what the API tells of an import."""
    return ImportResource.model_validate(
        {
            "id": row.id,
            "dataset": row.dataset_id,
            "status": row.status,
            "done": row.done,
            "total": row.total,
            "rejected": row.outcomes,
            "error": row.error,
            "created_at": row.created_at,
        }
    )


def get_import(session: Session, dataset_id: str, import_id: str) -> Import:
    """Return an import of the data set or raise NotFound."""
    row = session.get(Import, import_id)
    if row is None or row.dataset_id != dataset_id:
        raise NotFound(
            "import_not_found", f"there is no import {import_id} into data set {dataset_id}"
        )
    return row


def run_import(engine: Engine, storage: Storage, settings: Settings, import_id: str) -> None:
    """Take the files of a claimed import into its data set.

    Call it again after a kill: it goes on where it was.  It ends early, leaving the import alone,
    when the import's owner is no longer the one it began under.

    Side effects: rows and blobs as `Uploads.accept` makes them; the import's progress about once a
    second; the archive is removed when the import has ended, also when this raises.

    Raises:
        Exception: What no file of the archive is to blame for; the caller records it.
    """
    progress = _Progress(engine, import_id)
    path = storage.archive_path(import_id)
    try:
        _run(progress, Uploads(engine, storage, settings, progress.dataset_id), path)
    except (DataError, ServiceError) as error:
        named = error.renamed(ARCHIVE_NAME) if isinstance(error, DataError) else error
        logger.warning("%s: %s", import_id, named)
        progress.end("failed", {"code": named.code, "detail": named.detail, "hint": named.hint})
    except _LostError:
        logger.warning("%s: another worker has taken it over", import_id)
        return
    except Exception:
        path.unlink(missing_ok=True)
        raise
    path.unlink(missing_ok=True)


def clear_archives(
    engine: Engine, storage: Storage, *, older_than: float, unfinished_older_than: float
) -> int:
    """Remove archives that nobody waits for.

    A process killed between an archive and its row, or between an import's end and the archive's
    removal, leaves one.

    Args:
        engine: Of the database.
        storage: Where the archives are.
        older_than: Complete archives last written before it go, in seconds since the epoch.
        unfinished_older_than: Uploads that got their last byte before it are given up.

    Returns:
        How many were removed.
    """
    spared = import_ids_under_way(storage, older_than=unfinished_older_than)
    with session_factory(engine, writes=False)() as session:
        spared.update(session.scalars(select(Import.id).where(Import.status.in_(_PENDING))))
    removed = 0
    for path in storage.spool_dir.glob("*.archive"):
        # Another process may have removed the file in between.
        with contextlib.suppress(FileNotFoundError):
            if path.stem not in spared and path.stat().st_mtime < older_than:
                path.unlink()
                removed += 1
    return removed


class _LostError(Exception):
    """Another worker owns the import now."""


class _Progress:
    """An import's row, written only while its owner is the one at the beginning."""

    def __init__(self, engine: Engine, import_id: str) -> None:
        self._writes = session_factory(engine)
        self._id = import_id
        with session_factory(engine, writes=False)() as session:
            row = session.get(Import, import_id)
            if row is None or row.status not in _PENDING:
                raise NotFound("import_not_found", f"{import_id} is no import under way")
            self.dataset_id = row.dataset_id
            self.done = row.done
            self.outcomes: list[dict[str, Any]] = list(row.outcomes)
            self._owner = row.owner
        self._written_at = time.monotonic()

    def add(self, outcome: FileOutcome) -> None:
        self.done += 1
        if outcome.outcome == "rejected":
            self.outcomes.append(asdict(outcome))
        if time.monotonic() - self._written_at >= _PROGRESS_EVERY_S:
            self._write(status="running")

    def end(self, status: str, error: dict[str, Any] | None = None) -> None:
        self._write(status=status, error=error, owner=None, lease_until=None)

    def _write(self, **values: Any) -> None:
        values |= {"done": self.done, "outcomes": self.outcomes}
        statement = (
            update(Import)
            .where(Import.id == self._id, Import.status.in_(_PENDING))
            .where(Import.owner.is_not_distinct_from(self._owner))
            .values(**values)
            .returning(Import.id)
        )
        with self._writes.begin() as session:
            if session.scalar(statement) is None:
                raise _LostError(self._id)
        self._written_at = time.monotonic()


def _run(progress: _Progress, uploads: Uploads, path: Path) -> None:
    for index, member in enumerate(_frames_first(path)):
        if index >= progress.done:
            progress.add(uploads.accept(IncomingFile(member.name, member.open)))
    progress.end("succeeded_with_problems" if progress.outcomes else "succeeded")


def _frames_first(path: Path) -> Iterator[ArchiveMember]:
    """Yield the frames and then everything else: a tar file can be read forwards only."""
    for wanted in (True, False):
        for member in _members(path):
            if is_frame(member.name) is wanted:
                yield member


def _members(path: Path) -> Iterator[ArchiveMember]:
    for member in open_archive(path):
        *folders, name = member.name.split("/")
        if not ("__MACOSX" in folders or name in _LITTER or is_yolo_list(member.name)):
            yield member


def count_members(path: Path) -> int:
    """Return how many files an archive brings.

    Raises:
        ArchiveError: The archive is empty, damaged, or none at all.
    """
    if path.stat().st_size == 0:
        raise empty_archive(
            "The request's body is empty (0 bytes).", "Send the archive as the body."
        )
    try:
        total = sum(1 for _ in _members(path))
    except ArchiveError as error:
        # The spooled file's name says nothing to the sender.
        raise ArchiveError(
            error.code,
            error.detail,
            file=ARCHIVE_NAME,
            where=error.where or "whole file",
            hint=error.hint,
        ) from error
    if total == 0:
        raise empty_archive(
            "The archive holds no file but an operating system's own.",
            "Pack the folder that contains the pictures.",
        )
    return total


def empty_archive(detail: str, hint: str) -> ArchiveError:
    """Return the error that an archive brings nothing."""
    return ArchiveError("archive_empty", detail, file=ARCHIVE_NAME, where="whole file", hint=hint)


def archive_too_large(limit: int) -> PayloadTooLarge:
    """Return the error that an archive is larger than this installation accepts."""
    return PayloadTooLarge(
        "archive_too_large",
        f"the archive has more than {limit} bytes",
        file=ARCHIVE_NAME,
        hint="Send several smaller archives, or raise HAIRLINE_MAX_ARCHIVE_BYTES.",
    )


def digest_mismatch(sha256: str) -> InvalidRequest:
    """Return the error that an archive is not the one its sender announced."""
    return InvalidRequest(
        "archive_digest_mismatch",
        f"the archive that arrived has the SHA-256 {sha256}, another than Repr-Digest says",
        file=ARCHIVE_NAME,
        where="whole file",
        hint="The file was changed while it was sent; send it again from the beginning.",
    )


def _limited(chunks: Iterable[bytes], limit: int) -> Iterator[bytes]:
    received = 0
    for chunk in chunks:
        received += len(chunk)
        if received > limit:
            raise archive_too_large(limit)
        yield chunk
