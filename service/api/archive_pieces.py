"""What the headers of an archive's pieces say, and what is done with a piece.

``Content-Range`` on PUT as large public upload services use it: 308 and ``Range`` say how much is
there until the last byte is (docs/decisions/0013-archives-arrive-in-pieces.md).
"""

import hashlib
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from fastapi import status
from fastapi.responses import JSONResponse
from sqlalchemy import Engine

from data.errors import ArchiveError
from data.recognition import LayoutName
from service.api.idempotency import KEPT_FOR, record, replay
from service.database.engine import session_factory
from service.datasets.imports import (
    ABANDONED_AFTER_S,
    Transfer,
    archive_too_large,
    clear_archives,
    count_members,
    digest_mismatch,
    empty_archive,
    import_resource,
    new_import,
)
from service.datasets.repository import get_dataset
from service.errors import Conflict, InvalidRequest, NotFound
from service.partial_uploads import Part, PartialUploads, check_piece
from service.settings import Settings
from service.storage import Storage

_CONTENT_RANGE = re.compile(r"bytes (?:(\d{1,18})-(\d{1,18})|\*)/(\d{1,18})")


@dataclass(frozen=True)
class Piece:
    """A part of an archive that a request brings.

    Attributes:
        start: Its first byte; None asks how much is there and brings nothing.
        stop: Behind its last byte.
        total: Bytes of the whole archive.
        is_whole: Whether the request brings all of it and whatever was there is to be replaced.
        sha256: What its sender says it is; None leaves it unverified.
        total_sha256: What its sender says the whole archive is.
    """

    start: int | None
    stop: int
    total: int
    is_whole: bool = False
    sha256: bytes | None = None
    total_sha256: bytes | None = None

    @property
    def length(self) -> int:
        """Bytes of the piece."""
        return 0 if self.start is None else self.stop - self.start


def read_piece(
    content_range: str | None,
    content_length: str | None,
    *,
    sha256: bytes | None,
    total_sha256: bytes | None,
) -> Piece:
    """Return the piece that a request's headers announce.

    Raises:
        InvalidRequest: They can't be meant as they are written.
    """
    piece = _ranged(content_range, content_length)
    # A question has no body, and a digest of nothing says nothing.
    told = None if piece.start is None else sha256
    return replace(piece, sha256=told, total_sha256=total_sha256)


def _ranged(content_range: str | None, content_length: str | None) -> Piece:
    length = int(content_length) if content_length is not None else None
    if content_range is None:
        if length is None:
            raise _bad_header(
                "content_length_missing",
                "an archive under an Idempotency-Key comes with its length",
                "Content-Length",
                "Send Content-Length, or the archive in pieces with Content-Range.",
            )
        return Piece(0, length, length, is_whole=True)
    found = _CONTENT_RANGE.fullmatch(content_range.strip())
    if found is None:
        raise _bad_range(f"{content_range[:100]!r} is none")
    total = int(found[3])
    if found[1] is None:
        return Piece(None, 0, total)
    piece = Piece(int(found[1]), int(found[2]) + 1, total)
    if not 0 < piece.length <= piece.stop <= total:
        raise _bad_range(f"{content_range!r} ends before it begins or behind the archive")
    if length is not None and length != piece.length:
        raise _bad_range(f"it names {piece.length} bytes, and the body has {length}")
    return piece


class ArchivePieces:
    """Takes in archives piece by piece, each under its Idempotency-Key."""

    def __init__(self, engine: Engine, storage: Storage, settings: Settings) -> None:
        self._engine = engine
        self._storage = storage
        self._settings = settings
        self._uploads = PartialUploads(storage)
        self._reads = session_factory(engine, writes=False)
        self._writes = session_factory(engine)

    def receive(
        self,
        dataset_id: str,
        key: str,
        piece: Piece,
        layout: LayoutName | None,
        chunks: Iterable[bytes],
    ) -> JSONResponse:
        """Append a piece; queue the import when the last byte is there.

        The ``layout`` of the request that brings the last byte counts.

        Side effects: what arrives is kept, also when ``chunks`` raises in between; a piece with a
        digest is kept whole or not at all.

        Returns:
            308 with how much is there, or 202 with the import.

        Raises:
            NotFound: There is no such data set.
            Conflict: Another request is at work on the upload, the piece is not the next one, or
                the key stands for another file.
            InvalidRequest: The piece or the whole archive has another digest than announced, or the
                archive is too large.
            ArchiveError: The whole archive is empty, damaged, or none at all.
            StorageError: The disk is full or fails; what arrived is kept.
        """
        with self._reads() as session:
            get_dataset(session, dataset_id)
        if piece.total > self._settings.max_archive_bytes:
            raise archive_too_large(self._settings.max_archive_bytes)
        if piece.total == 0:
            raise empty_archive("The archive has 0 bytes.", "Send the archive as the body.")
        with self._uploads.open(key) as part:
            answered = self._replayed(dataset_id, key, piece.total)
            if answered is not None:
                # A server that was killed after it had queued the import left the upload.
                part.hand_over()
                return answered
            if piece.start is None and part.record is None:
                return _so_far(part, piece.total)
            if part.record is None:
                self.clear_abandoned()
            total_sha256 = None if piece.total_sha256 is None else piece.total_sha256.hex()
            part.begin(dataset_id, piece.total, total_sha256)
            if piece.start is not None:
                _append(part, piece, chunks)
            if not part.is_complete:
                return _so_far(part, piece.total)
            return self._finish(part, key, layout)

    def give_up(self, dataset_id: str, key: str) -> None:
        """Remove what has arrived of an upload.

        Raises:
            NotFound: Nothing has, or its import is queued already.
            Conflict: Another request is at work on it.
        """
        with self._uploads.open(key) as part:
            record = part.record
            if record is None or record.dataset_id != dataset_id:
                raise _unknown_upload(dataset_id)
            if self._replayed(dataset_id, key, record.total) is not None:
                part.hand_over()
                raise _unknown_upload(dataset_id)
            part.discard()

    def clear_abandoned(self) -> None:
        """Remove uploads that nobody has gone on with, and archives that nobody waits for."""
        clear_archives(
            self._engine,
            self._storage,
            older_than=time.time() - ABANDONED_AFTER_S,
            unfinished_older_than=time.time() - KEPT_FOR.total_seconds(),
        )

    def _replayed(self, dataset_id: str, key: str, total: int) -> JSONResponse | None:
        with self._reads() as session:
            found = replay(session, key, operation=_operation(dataset_id), request={"bytes": total})
        return None if found is None else _queued(dataset_id, found[1])

    def _finish(self, part: Part, key: str, layout: LayoutName | None) -> JSONResponse:
        announced = part.begun()
        try:
            transfer = _transfer(part)
            members = count_members(part.archive)
        except (InvalidRequest, ArchiveError):
            # No byte behind these could mend them.
            part.discard()
            raise
        row = new_import(announced.import_id, announced.dataset_id, transfer, members, layout)
        with self._writes.begin() as session:
            session.add(row)
            session.flush()
            body = {"import": import_resource(row).model_dump(mode="json")}
            record(
                session,
                key,
                operation=_operation(row.dataset_id),
                request={"bytes": announced.total},
                status=status.HTTP_202_ACCEPTED,
                body=body,
            )
        part.hand_over()
        return _queued(row.dataset_id, body)


def _transfer(part: Part) -> Transfer:
    """Return what is known of an archive that is complete.

    Raises:
        InvalidRequest: It is not the one announced.
    """
    record = part.begun()
    # Only who tells the whole's digest has the archive read, should a restart have lost the hash.
    sha256 = part.whole_sha256(may_read=record.sha256 is not None)
    if record.sha256 is not None and sha256 is not None and record.sha256 != sha256:
        raise digest_mismatch(sha256)
    unverified_bytes = record.unverified_bytes if record.sha256 is None else 0
    return Transfer(sha256, record.pieces_digest, unverified_bytes)


def _append(part: Part, piece: Piece, chunks: Iterable[bytes]) -> None:
    body = _exactly(chunks, piece.length)
    if piece.is_whole:
        part.restart()
    elif piece.sha256 is not None and part.holds(piece.start or 0, piece.stop, piece.sha256):
        # Its acknowledgement was lost.  What arrives is the same again and is not written.
        again = hashlib.sha256()
        for chunk in body:
            again.update(chunk)
        check_piece(again.digest(), piece.sha256, part.received)
        return
    if part.received != piece.start:
        raise Conflict(
            "upload_offset",
            f"the next byte is {part.received}, and the piece begins with byte {piece.start}",
            where="header/Content-Range",
            hint=f"Go on from byte {part.received}.",
        )
    part.append(body, piece.sha256)


def _exactly(chunks: Iterable[bytes], length: int) -> Iterator[bytes]:
    for chunk in chunks:
        length -= len(chunk)
        if length < 0:
            raise _bad_range("the body has more bytes than it names")
        yield chunk
    if length:
        raise _bad_range(f"the body lacks {length} of the bytes that it names")


def _so_far(part: Part, total: int) -> JSONResponse:
    received = part.received
    headers = {"Range": f"bytes=0-{received - 1}"} if received else {}
    unverified = 0 if part.record is None else part.record.unverified_bytes
    body = {"received": received, "total": total, "unverified_bytes": unverified}
    return JSONResponse(body, status.HTTP_308_PERMANENT_REDIRECT, headers)


def _queued(dataset_id: str, body: dict[str, Any]) -> JSONResponse:
    location = f"/datasets/{dataset_id}/imports/{body['import']['id']}"
    return JSONResponse(body, status.HTTP_202_ACCEPTED, {"Location": location})


def _operation(dataset_id: str) -> str:
    return f"PUT /datasets/{dataset_id}/archive"


def _unknown_upload(dataset_id: str) -> NotFound:
    return NotFound(
        "upload_not_found",
        f"no upload into {dataset_id} is under way under this key",
        where="header/Idempotency-Key",
    )


def _bad_range(reason: str) -> InvalidRequest:
    return _bad_header(
        "content_range_invalid",
        f"Content-Range: {reason}",
        "Content-Range",
        "Write bytes FIRST-LAST/TOTAL, counted from 0 with LAST included, or bytes */TOTAL to ask.",
    )


def _bad_header(code: str, detail: str, header: str, hint: str) -> InvalidRequest:
    return InvalidRequest(code, detail, where=f"header/{header}", hint=hint)
