"""What the headers of an archive's pieces say, and what is done with a piece.

``Content-Range`` on PUT as large public upload services use it: 308 and ``Range`` say how much is
there until the last byte is (docs/decisions/0013-archives-arrive-in-pieces.md).
"""

import base64
import binascii
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
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
from service.partial_uploads import Part, PartialUploads
from service.settings import Settings
from service.storage import Storage

_CONTENT_RANGE = re.compile(r"bytes (?:(\d{1,18})-(\d{1,18})|\*)/(\d{1,18})")
_SHA256_BYTES = 32


@dataclass(frozen=True)
class Piece:
    """A part of an archive that a request brings.

    Attributes:
        start: Its first byte; None asks how much is there and brings nothing.
        stop: Behind its last byte.
        total: Bytes of the whole archive.
        is_whole: Whether the request brings all of it and whatever was there is to be replaced.
    """

    start: int | None
    stop: int
    total: int
    is_whole: bool = False

    @property
    def length(self) -> int:
        """Bytes of the piece."""
        return 0 if self.start is None else self.stop - self.start


def read_piece(content_range: str | None, content_length: str | None) -> Piece:
    """Return the piece that a request's headers announce.

    Raises:
        InvalidRequest: They can't be meant as they are written.
    """
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


def read_repr_digest(value: str | None) -> str | None:
    """Return the SHA-256 of ``Repr-Digest`` (RFC 9530) in hexadecimal, None without the header.

    Raises:
        InvalidRequest: It holds no SHA-256.
    """
    if value is None:
        return None
    for member in value.split(","):
        name, _, encoded = member.strip().partition("=")
        if name == "sha-256" and encoded[:1] == encoded[-1:] == ":":
            try:
                raw = base64.b64decode(encoded[1:-1], validate=True)
            except binascii.Error:
                break
            if len(raw) == _SHA256_BYTES:
                return raw.hex()
    raise _bad_header(
        "repr_digest_invalid",
        f"Repr-Digest holds no SHA-256: {value[:100]!r}",
        "Repr-Digest",
        "Send the whole archive's digest as sha-256=:BASE64:.",
    )


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
        sha256: str | None,
        layout: LayoutName | None,
        chunks: Iterable[bytes],
    ) -> JSONResponse:
        """Append a piece; queue the import when the last byte is there.

        The ``layout`` of the request that brings the last byte counts.

        Side effects: what arrives is kept, also when ``chunks`` raises in between.

        Returns:
            308 with how much is there, or 202 with the import.

        Raises:
            NotFound: There is no such data set.
            Conflict: Another request is at work on the upload, the piece is not the next one, or
                the key stands for another file.
            InvalidRequest: The whole archive has another digest than announced, or is too large.
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
                return _so_far(0, piece.total)
            if part.record is None:
                self.clear_abandoned()
            part.begin(dataset_id, piece.total, sha256)
            if piece.start is not None:
                _append(part, piece, chunks)
            if not part.is_complete:
                return _so_far(part.received, piece.total)
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
            sha256 = part.digest()
            if announced.sha256 not in (None, sha256):
                raise digest_mismatch(sha256)
            members = count_members(part.archive)
        except (InvalidRequest, ArchiveError):
            # No byte behind these could mend them.
            part.discard()
            raise
        row = new_import(announced.import_id, announced.dataset_id, sha256, members, layout)
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


def _append(part: Part, piece: Piece, chunks: Iterable[bytes]) -> None:
    if piece.is_whole:
        part.restart()
    if part.received != piece.start:
        raise Conflict(
            "upload_offset",
            f"the next byte is {part.received}, and the piece begins with byte {piece.start}",
            where="header/Content-Range",
            hint=f"Go on from byte {part.received}.",
        )
    part.append(_at_most(chunks, piece.length))


def _at_most(chunks: Iterable[bytes], length: int) -> Iterator[bytes]:
    for chunk in chunks:
        length -= len(chunk)
        if length < 0:
            raise _bad_range("the body has more bytes than it names")
        yield chunk


def _so_far(received: int, total: int) -> JSONResponse:
    headers = {"Range": f"bytes=0-{received - 1}"} if received else {}
    body = {"received": received, "total": total}
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
