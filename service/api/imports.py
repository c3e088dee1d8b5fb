"""Archives on their way into a data set."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Annotated, Any

import anyio
from fastapi import APIRouter, Header, Query, Request, Response, status
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict
from starlette.requests import ClientDisconnect

from data.recognition import LayoutName
from service.api.archive_pieces import read_piece
from service.api.dependencies import (
    ArchivePiecesDependency,
    EngineDependency,
    ReadSession,
    SettingsDependency,
    StorageDependency,
    WriteSession,
)
from service.api.digest_headers import read_digest
from service.api.idempotency import IdempotencyKey
from service.datasets.imports import get_import, import_resource, name_layout, queue_import
from service.datasets.resources import ImportResource
from service.errors import InvalidRequest

LayoutQuery = Annotated[
    LayoutName | None,
    Query(
        description="How the archive's files belong together. Left out, it is recognized, or the "
        "import fails with layout_ambiguous, and its layout may be named then; named, labels of "
        "other formats are left out."
    ),
]

router = APIRouter(prefix="/datasets/{dataset_id}", tags=["data sets"])

# A sender whose cable was pulled never says goodbye, and would keep others from going on.
_SILENCE_S = 60.0

_MEDIA_TYPES = (
    "application/zip",
    "application/x-tar",
    "application/gzip",
    "application/zstd",
    "application/octet-stream",
)
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_ARCHIVE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "description": "A zip, tar, tar.gz or tar.zst file as the request's body, or a piece of "
        "one. Its content decides what it is, not the type named here.",
        "content": dict.fromkeys(_MEDIA_TYPES, _BINARY),
    }
}
_PIECES: dict[int | str, dict[str, Any]] = {
    308: {
        "description": "More is to come: `Range` says what is there (no `Range`: nothing yet)",
        "headers": {
            "Range": {
                "description": "`bytes=0-LAST`; go on from `LAST + 1`.",
                "schema": {"type": "string"},
            }
        },
        "content": {
            "application/json": {
                "example": {"received": 8388608, "total": 2147483648, "unverified_bytes": 0}
            }
        },
    }
}

ContentRange = Annotated[
    str | None,
    Header(
        alias="Content-Range",
        description="`bytes FIRST-LAST/TOTAL` for a piece; `bytes */TOTAL` without a body asks "
        "what is there. Needs an Idempotency-Key, the upload's name.",
    ),
]
# Lists, because a field may come in several lines.
ContentDigest = Annotated[
    list[str] | None,
    Header(
        alias="Content-Digest",
        description="`sha-256=:BASE64:` of this request's body (RFC 9530). A piece that arrives "
        "with another is refused, and none of it is kept. Without it the piece is taken unverified "
        "and counted in `unverified_bytes`.",
    ),
]
ReprDigest = Annotated[
    list[str] | None,
    Header(
        alias="Repr-Digest",
        description="`sha-256=:BASE64:` of the whole archive (RFC 9530), in any of its requests: "
        "an archive that arrives with another is refused.",
    ),
]


@router.put(
    "/archive",
    status_code=status.HTTP_202_ACCEPTED,
    summary="Upload an archive, whole or in pieces",
    openapi_extra=_ARCHIVE_BODY,
    responses=_PIECES,
    response_model=dict[str, ImportResource],
)
async def put_archive(
    dataset_id: str,
    request: Request,
    engine: EngineDependency,
    storage: StorageDependency,
    settings: SettingsDependency,
    pieces: ArchivePiecesDependency,
    idempotency_key: IdempotencyKey = None,
    content_range: ContentRange = None,
    content_digest: ContentDigest = None,
    repr_digest: ReprDigest = None,
    layout: LayoutQuery = None,
) -> Response:
    """Receive an archive and queue its import; an empty or damaged one leaves nothing behind.

    With `Content-Range` it comes in pieces: each is answered with 308 until the last byte is there.
    What has arrived is kept for seven days, so that an upload that was cut off goes on.
    """
    sha256 = read_digest(content_digest, "Content-Digest")
    total_sha256 = read_digest(repr_digest, "Repr-Digest")
    if idempotency_key is None:
        if content_range is not None:
            raise InvalidRequest(
                "idempotency_key_missing",
                "an archive in pieces needs a name",
                where="header/Idempotency-Key",
                hint="Send the same Idempotency-Key, of your own choice, with each of its pieces.",
            )
        told = [digest for digest in (sha256, total_sha256) if digest is not None]
        receive = partial(_receive_whole, engine, storage, settings, dataset_id, told, layout)
    else:
        length = request.headers.get("Content-Length")
        piece = read_piece(content_range, length, sha256=sha256, total_sha256=total_sha256)
        receive = partial(pieces.receive, dataset_id, idempotency_key, piece, layout)
    return await anyio.to_thread.run_sync(receive, _chunks(request))


def _receive_whole(
    engine: EngineDependency,
    storage: StorageDependency,
    settings: SettingsDependency,
    dataset_id: str,
    told: Sequence[bytes],
    layout: LayoutName | None,
    chunks: Iterator[bytes],
) -> JSONResponse:
    row = queue_import(engine, storage, settings, dataset_id, chunks, told=told, layout=layout)
    return JSONResponse(
        {"import": import_resource(row).model_dump(mode="json")},
        status.HTTP_202_ACCEPTED,
        {"Location": f"/datasets/{dataset_id}/imports/{row.id}"},
    )


def _chunks(request: Request) -> Iterator[bytes]:
    """Yield the body in a worker thread.

    Writing to disk never holds up the event loop, and a slow disk slows the sender down.

    Raises:
        ClientDisconnect: The sender is gone or has been silent for too long.
    """
    stream = request.stream()

    async def next_chunk() -> bytes | None:
        with anyio.move_on_after(_SILENCE_S):
            return await anext(stream, None)
        raise ClientDisconnect

    while (chunk := anyio.from_thread.run(next_chunk)) is not None:
        yield chunk


@router.delete(
    "/archive",
    status_code=status.HTTP_204_NO_CONTENT,
    summary="Give up an archive's upload",
)
def delete_archive(
    dataset_id: str,
    pieces: ArchivePiecesDependency,
    idempotency_key: Annotated[str, Header(alias="Idempotency-Key", min_length=1, max_length=200)],
) -> None:
    """Remove what has arrived of an archive; nobody else does before seven days are over."""
    pieces.give_up(dataset_id, idempotency_key)


@router.get("/imports/{import_id}", summary="Look at an import")
def read_import(dataset_id: str, import_id: str, session: ReadSession) -> ImportResource:
    """Return how far an import is and which files it had to reject."""
    return import_resource(get_import(session, dataset_id, import_id))


class NamedLayout(BaseModel):
    """How an archive's files belong together."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"name": "coco"}]})

    name: LayoutName


@router.put(
    "/imports/{import_id}/layout", summary="Name the layout of an archive that was received"
)
def put_layout(
    dataset_id: str,
    import_id: str,
    layout: NamedLayout,
    session: WriteSession,
    storage: StorageDependency,
) -> ImportResource:
    """Queue an import again that failed with `layout_ambiguous` or `layout_mismatch`.

    Its archive is kept for a day after it failed and need not be sent again.
    """
    return import_resource(name_layout(session, storage, dataset_id, import_id, layout.name))
