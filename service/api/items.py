"""A data set's frames and labels: browse, preview, delete."""

from functools import partial
from typing import Annotated, Any

import anyio
from fastapi import APIRouter, Query, Request, Response, status
from sqlalchemy import select

from service.api.dependencies import (
    PreviewsDependency,
    ReadSession,
    StorageDependency,
    WriteSession,
)
from service.api.paging import Cursor, Limit, Page, fetch_page
from service.database.tables import Item, Label
from service.datasets.measurements import lost_files
from service.datasets.previews import PreviewFormat, PreviewKind
from service.datasets.repository import (
    delete_item,
    find_label,
    get_dataset,
    get_item,
    get_label,
    labels_of,
    select_items,
    select_waiting_labels,
)
from service.datasets.resources import ItemResource, LabelResource
from service.errors import NotFound

router = APIRouter(prefix="/datasets/{dataset_id}", tags=["data sets"])

MaxSide = Annotated[
    int | None,
    Query(ge=16, le=32_768, description="Longest side in px; the frame's own size if left out."),
]


@router.get("/items", summary="Browse frames")
def list_items(
    dataset_id: str,
    session: ReadSession,
    storage: StorageDependency,
    limit: Limit = 100,
    cursor: Cursor = None,
    labelled: Annotated[bool | None, Query(description="Only with, or only without label.")] = None,
) -> Page[ItemResource]:
    """List frames in the order of their keys, which is that of their names without suffix."""
    get_dataset(session, dataset_id)
    rows, following = fetch_page(
        session,
        select_items(dataset_id, labelled=labelled),
        order=(Item.key,),
        limit=limit,
        cursor=cursor,
    )
    labels = labels_of(session, rows)
    lost = lost_files(session, storage, rows)
    items = [_item_answer(row, labels.get(row.key), lost) for row in rows]
    return Page(items=items, next_cursor=following)


@router.get("/items/{item_id}", summary="Look at a frame")
def read_item(
    dataset_id: str, item_id: str, session: ReadSession, storage: StorageDependency
) -> ItemResource:
    """Return a frame and its label."""
    item = get_item(session, dataset_id, item_id)
    label = find_label(session, dataset_id, item.key)
    return _item_answer(item, label, lost_files(session, storage, [item]))


@router.get(
    "/items/{item_id}/{kind}",
    summary="Preview a frame, its mask or its outlines",
    response_class=Response,
    responses={
        200: {"content": {"image/jpeg": {}, "image/png": {}}},
        304: {"description": "The picture named by `If-None-Match` still stands"},
    },
)
async def preview_item(
    dataset_id: str,
    item_id: str,
    kind: PreviewKind,
    request: Request,
    store: PreviewsDependency,
    max_side_px: MaxSide = None,
    format: PreviewFormat = "jpeg",  # noqa: A002 - the parameter's public name.
) -> Response:
    """Draw the frame (`image`), its labels (`mask`), or outlines in class colours (`overlay`)."""
    plan = partial(store.plan, kind=kind, max_side_px=max_side_px, picture_format=format)
    planned = await anyio.to_thread.run_sync(plan, dataset_id, item_id)
    # The frame and the label never change under their digests, so a browser may keep the picture
    # and ask only whether it still stands.
    etag = f'"{planned.digest}"'
    headers = {"ETag": etag, "Cache-Control": "private, no-cache"}
    if _names(request.headers.get("If-None-Match"), etag):
        return Response(status_code=status.HTTP_304_NOT_MODIFIED, headers=headers)
    preview = await anyio.to_thread.run_sync(store.find, planned)
    if preview is None:
        # Who waits for the limiter holds neither a thread nor a connection that others need.
        preview = await anyio.to_thread.run_sync(
            store.draw, planned, limiter=request.app.state.preview_limiter
        )
    return Response(preview.content, media_type=preview.media_type, headers=headers)


def _names(if_none_match: str | None, etag: str) -> bool:
    """Tell whether the header names the tag (RFC 9110, section 13.1.2: weak comparison)."""
    tags = [tag.strip().removeprefix("W/") for tag in (if_none_match or "").split(",")]
    return etag in tags or tags == ["*"]


@router.delete("/items/{item_id}", status_code=status.HTTP_204_NO_CONTENT, summary="Delete a frame")
def remove_item(dataset_id: str, item_id: str, session: WriteSession) -> None:
    """Delete a frame and its label; versions frozen before keep both."""
    delete_item(session, get_item(session, dataset_id, item_id))


@router.delete(
    "/items/{item_id}/label",
    status_code=status.HTTP_204_NO_CONTENT,
    summary="Delete a frame's label",
)
def remove_item_label(dataset_id: str, item_id: str, session: WriteSession) -> None:
    """Delete a frame's label, so that another can be uploaded."""
    session.delete(get_label(session, get_item(session, dataset_id, item_id)))


@router.get("/labels", summary="Browse labels")
def list_labels(
    dataset_id: str,
    session: ReadSession,
    limit: Limit = 100,
    cursor: Cursor = None,
    waiting: Annotated[bool, Query(description="Only those whose frame has not arrived.")] = False,
) -> Page[LabelResource]:
    """List labels in the order of their keys."""
    get_dataset(session, dataset_id)
    everything = select(Label).where(Label.dataset_id == dataset_id)
    rows, following = fetch_page(
        session,
        select_waiting_labels(dataset_id) if waiting else everything,
        order=(Label.key,),
        limit=limit,
        cursor=cursor,
    )
    return Page(items=[_label_answer(row) for row in rows], next_cursor=following)


@router.delete(
    "/labels/{label_id}", status_code=status.HTTP_204_NO_CONTENT, summary="Delete a label"
)
def remove_label(dataset_id: str, label_id: str, session: WriteSession) -> None:
    """Delete a label, also one that waits for its frame."""
    label = session.get(Label, label_id)
    if label is None or label.dataset_id != dataset_id:
        raise NotFound(
            "label_not_found",
            f"there is no label {label_id} in data set {dataset_id}",
            hint=f"GET /datasets/{dataset_id}/labels lists them.",
        )
    session.delete(label)


def _item_answer(item: Item, label: Label | None, lost: set[str]) -> ItemResource:
    columns: dict[str, Any] = {
        name: getattr(item, name)
        for name in ItemResource.model_fields
        if name not in {"label", "is_stored"}
    }
    return ItemResource(
        **columns,
        is_stored=item.sha256 not in lost,
        label=None if label is None else _label_answer(label),
    )


def _label_answer(label: Label) -> LabelResource:
    return LabelResource(**{name: getattr(label, name) for name in LabelResource.model_fields})
