"""Archives on their way into a data set."""

from collections.abc import Iterator
from functools import partial
from typing import Annotated

import anyio
from fastapi import APIRouter, Query, Request, Response, status

from data.recognition import LayoutName
from service.api.dependencies import (
    EngineDependency,
    ReadSession,
    SettingsDependency,
    StorageDependency,
)
from service.database.tables import Import
from service.datasets.imports import get_import, queue_import
from service.datasets.resources import ImportResource

LayoutQuery = Annotated[
    LayoutName | None,
    Query(
        description="How the archive's files belong together. Left out, it is recognized, or the "
        "import fails with layout_ambiguous; named, labels of other formats are left out."
    ),
]

router = APIRouter(prefix="/datasets/{dataset_id}", tags=["data sets"])


@router.put(
    "/archive",
    status_code=status.HTTP_202_ACCEPTED,
    summary="Upload an archive",
    openapi_extra={
        "requestBody": {
            "required": True,
            "description": "A zip, tar, tar.gz or tar.zst file as the request's body.",
            "content": {
                "application/zip": {"schema": {"type": "string", "format": "binary"}},
                "application/x-tar": {"schema": {"type": "string", "format": "binary"}},
                "application/gzip": {"schema": {"type": "string", "format": "binary"}},
            },
        }
    },
)
async def put_archive(
    dataset_id: str,
    request: Request,
    response: Response,
    engine: EngineDependency,
    storage: StorageDependency,
    settings: SettingsDependency,
    layout: LayoutQuery = None,
) -> dict[str, ImportResource]:
    """Receive an archive and queue its import; an empty or damaged one leaves nothing behind."""
    stream = request.stream()

    async def next_chunk() -> bytes | None:
        return await anext(stream, None)

    def chunks() -> Iterator[bytes]:
        # Runs in a worker thread: writing to disk never holds up the event loop, and a slow disk
        # slows the sender down.
        while (chunk := anyio.from_thread.run(next_chunk)) is not None:
            yield chunk

    row = await anyio.to_thread.run_sync(
        partial(queue_import, engine, storage, settings, dataset_id, chunks(), layout=layout)
    )
    response.headers["Location"] = f"/datasets/{dataset_id}/imports/{row.id}"
    return {"import": _resource(row)}


@router.get("/imports/{import_id}", summary="Look at an import")
def read_import(dataset_id: str, import_id: str, session: ReadSession) -> ImportResource:
    """Return how far an import is and which files it had to reject."""
    return _resource(get_import(session, dataset_id, import_id))


def _resource(row: Import) -> ImportResource:
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
            "created_at": row.created_at,
        }
    )
