"""Importing an archive: kept and checked by the API, unpacked file by file by the worker.

Nothing is unpacked to disk: each member goes the way of an uploaded file.  A worker killed in
between leaves an import whose accepted files are rows already, counted in the transactions that
made them rows; the next worker goes on behind them and opens none of them.
"""

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from data import ArchiveError, DataError
from data.recognition import Layout, LayoutName
from service.database.engine import session_factory
from service.database.tables import Import
from service.datasets.archive_layout import (
    ARCHIVE_NAME,
    archive_layout,
    frames_first,
    members,
)
from service.datasets.class_masks import ClassMaskSpool
from service.datasets.import_progress import PENDING, ImportLost, ImportProgress
from service.datasets.incoming import IncomingFile
from service.datasets.repository import get_dataset
from service.datasets.resources import ImportResource
from service.datasets.uploads import Uploads
from service.errors import Conflict, InvalidRequest, NotFound, PayloadTooLarge, ServiceError
from service.ids import new_id
from service.partial_uploads import import_ids_under_way
from service.settings import Settings
from service.storage import Storage

logger = logging.getLogger(__name__)

# How long an archive without an import is kept, should somebody be about to add the row.
ABANDONED_AFTER_S = 24 * 3600
# Why an import fails of which only the layout must be named; its archive is kept so long, too.
CURED_BY_A_LAYOUT = frozenset({"layout_ambiguous", "layout_mismatch"})


def queue_import(
    engine: Engine,
    storage: Storage,
    settings: Settings,
    dataset_id: str,
    chunks: Iterable[bytes],
    *,
    told: Sequence[bytes] = (),
    layout: LayoutName | None = None,
) -> Import:
    """Receive an archive, check it, also against the digests its sender has told, and queue it.

    The import recognizes a layout that is left open.

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
    if any(digest.hex() != archive.sha256 for digest in told):
        storage.archive_path(import_id).unlink()
        raise digest_mismatch(archive.sha256)
    transfer = Transfer(archive.sha256, None, 0 if told else archive.byte_count)
    row = new_import(import_id, dataset_id, transfer, total, layout)
    with session_factory(engine).begin() as session:
        session.add(row)
    return row


@dataclass(frozen=True)
class Transfer:
    """How an archive arrived.

    Attributes:
        sha256: Of the whole; None if it came in pieces between which the server was restarted.
        pieces_digest: Of its pieces (`service.upload_record`); None if it came as a whole.
        unverified_bytes: How many came without a digest of their sender's.
    """

    sha256: str | None
    pieces_digest: str | None
    unverified_bytes: int


def new_import(
    import_id: str, dataset_id: str, transfer: Transfer, total: int, layout: LayoutName | None
) -> Import:
    """Return the row that queues an archive's import."""
    return Import(
        id=import_id,
        dataset_id=dataset_id,
        status="queued",
        archive_sha256=transfer.sha256,
        pieces_digest=transfer.pieces_digest,
        unverified_bytes=transfer.unverified_bytes,
        total=total,
        layout=None if layout is None else {"name": layout, "is_named": True},
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
            "layout": row.layout,
            "transfer": {
                "sha256": row.archive_sha256,
                "pieces_digest": row.pieces_digest,
                "unverified_bytes": row.unverified_bytes,
            },
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


def name_layout(
    session: Session, storage: Storage, dataset_id: str, import_id: str, layout: LayoutName
) -> Import:
    """Queue an import again that failed for its layout, now under the layout that is named.

    Asked again, it returns the import as it is by then.

    Args:
        session: A writing session.
        storage: Keeps the archive.
        dataset_id: The data set.
        import_id: The import.
        layout: How the archive's files belong together.

    Raises:
        NotFound: There is no such import.
        Conflict: It did not fail for its layout, or its archive is no longer there.
    """
    row = get_import(session, dataset_id, import_id)
    named = {"name": layout, "is_named": True}
    if row.status != "failed" and (row.layout or {}).items() >= named.items():
        return row
    if row.status != "failed" or (row.error or {}).get("code") not in CURED_BY_A_LAYOUT:
        raise Conflict(
            "layout_settled",
            f"{import_id} is {row.status}, and did not fail for its layout",
            hint="Upload the archive again to import it in another layout.",
        )
    if not storage.archive_path(import_id).exists():
        raise Conflict(
            "archive_gone",
            f"the archive of {import_id} was kept for a day and is no longer there",
            file=ARCHIVE_NAME,
            hint=f"Upload it again, with ?layout={layout}.",
        )
    row.status, row.error, row.layout = "queued", None, named
    return row


def run_import(engine: Engine, storage: Storage, settings: Settings, import_id: str) -> None:
    """Take the files of a claimed import into its data set.

    Call it again after a kill: it goes on behind the last file that became a row.  It ends early,
    leaving the import alone, when the import's owner is no longer the one it began under.

    Side effects: rows and blobs as `Uploads.accept` makes them, and the import's progress with
    them; what was read is logged; the archive is removed when the import has ended, also when this
    raises, but not when only its layout must be named.

    Raises:
        Exception: What no file of the archive is to blame for; the caller records it.
    """
    progress = ImportProgress(engine, import_id)
    path = storage.archive_path(import_id)
    try:
        layout = _recognize(progress, path, settings)
        uploads = Uploads(engine, storage, settings, progress.dataset_id, layout)
        with ClassMaskSpool(storage, settings, layout, uploads.read) as masks:
            _run(progress, uploads, layout, masks, path)
        logger.info(
            "%s: read %d files of %d bytes from the archive, decoded %d frames",
            import_id,
            uploads.read.files,
            uploads.read.byte_count,
            uploads.decoded_frames,
        )
    except (DataError, ServiceError) as error:
        logger.warning("%s: %s", import_id, error)
        progress.end("failed", _failure(error, path))
        if error.code in CURED_BY_A_LAYOUT:
            # It is kept from now on, and not from when it arrived.  By now another worker may have
            # been told the layout and be done with it.
            with contextlib.suppress(FileNotFoundError):
                os.utime(path)
            return
    except ImportLost:
        logger.warning("%s: another worker has taken it over", import_id)
        return
    except Exception:
        path.unlink(missing_ok=True)
        raise
    path.unlink(missing_ok=True)


def _failure(error: DataError | ServiceError, path: Path) -> dict[str, Any]:
    # The spooled file's name says nothing to the sender.
    file = ARCHIVE_NAME if error.file in (None, path.name) else error.file
    return {
        "code": error.code,
        "detail": error.detail,
        "file": file,
        "where": error.where or "whole file",
        "hint": error.hint,
    }


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
        spared.update(session.scalars(select(Import.id).where(Import.status.in_(PENDING))))
    removed = 0
    for path in storage.spool_dir.glob("*.archive"):
        # Another process may have removed the file in between.
        with contextlib.suppress(FileNotFoundError):
            if path.stem not in spared and path.stat().st_mtime < older_than:
                path.unlink()
                removed += 1
    return removed


def _recognize(progress: ImportProgress, path: Path, settings: Settings) -> Layout:
    row = progress.layout
    layout = archive_layout(
        path,
        named=row["name"] if row is not None and row["is_named"] else None,
        declared=progress.classes,
        max_file_bytes=settings.max_file_bytes,
    )
    progress.recognize(layout)
    return layout


def _run(
    progress: ImportProgress, uploads: Uploads, layout: Layout, masks: ClassMaskSpool, path: Path
) -> None:
    position = 0
    for member in frames_first(path, layout):
        if masks.take(member):
            continue
        position += 1
        if position <= progress.done:
            continue
        if layout.leaves_out(member.name):
            progress.pass_over()
        else:
            file = IncomingFile(member.name, member.open)
            progress.add(uploads.accept(file, progress.journal))
    for frame in masks.frames():
        # A run that was killed may have counted some of a frame's files.
        counted = max(progress.done - position, 0)
        if counted < len(frame.files):
            for outcome in masks.accept(uploads, frame)[counted:]:
                progress.add(outcome)
        position += len(frame.files)
    progress.end("succeeded_with_problems" if progress.outcomes else "succeeded")


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
        total = sum(1 for _ in members(path))
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
        f"the archive that arrived has the SHA-256 {sha256}, another than its sender says",
        file=ARCHIVE_NAME,
        where="whole file",
        hint="It was changed while or before it was sent; send it again from the beginning.",
    )


def _limited(chunks: Iterable[bytes], limit: int) -> Iterator[bytes]:
    received = 0
    for chunk in chunks:
        received += len(chunk)
        if received > limit:
            raise archive_too_large(limit)
        yield chunk
