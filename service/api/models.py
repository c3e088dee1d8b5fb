"""``/models``: what was trained, with its bundle."""

from typing import Any

from fastapi import APIRouter
from fastapi.responses import StreamingResponse
from sqlalchemy import select

from service import model_registry
from service.api.dependencies import ReadSession, StorageDependency
from service.api.paging import Cursor, Limit, Page, fetch_page
from service.database.tables import Model
from service.resources import ModelResource

router = APIRouter(tags=["models"])


def resource(model: Model) -> ModelResource:
    """Return what the API answers of a model."""
    return ModelResource(
        id=model.id,
        job=model.job_id,
        version=model.version_id,
        metrics=model.report.get("metrics", {}),
        operating_point=model.report.get("operating_point", {}),
        notes=_notes(model.report),
        parent=model.parent_id,
        origin=model.origin,
        created_at=model.created_at,
    )


def _notes(report: dict[str, Any]) -> tuple[str, ...]:
    resolution = report.get("training", {}).get("resolution", {})
    if resolution.get("mode") != "resized":
        return ()
    factor = resolution["factor"]
    note = (
        f"it resizes each frame by {factor:g}, as it was trained to compare with full resolution; "
        "defects of few pixels may be lost"
    )
    return (note,)


@router.get("/models")
def list_models(
    session: ReadSession, limit: Limit = 50, cursor: Cursor = None
) -> Page[ModelResource]:
    """List models, newest first."""
    rows, following = fetch_page(
        session,
        select(Model),
        order=(Model.created_at, Model.id),
        limit=limit,
        cursor=cursor,
        descending=True,
    )
    return Page(items=[resource(model) for model in rows], next_cursor=following)


@router.get("/models/{model_id}")
def get_model(model_id: str, session: ReadSession) -> ModelResource:
    """Return a model with its metrics on the test split and its operating point."""
    return resource(model_registry.get(session, model_id))


@router.get(
    "/models/{model_id}/bundle",
    response_class=StreamingResponse,
    responses={200: {"content": {"application/x-tar": {}}, "description": "The bundle."}},
)
def get_bundle(
    model_id: str, session: ReadSession, storage: StorageDependency
) -> StreamingResponse:
    """Download a model as a tar archive: weights and description, no pickle."""
    model_registry.get(session, model_id)
    files = model_registry.bundle_files(storage, model_id)
    return StreamingResponse(
        model_registry.bundle_tar(storage, model_id, files),
        media_type="application/x-tar",
        headers={"Content-Disposition": f'attachment; filename="{model_id}.tar"'},
    )
