"""``/models``: what was trained, with its bundle."""

from fastapi import APIRouter
from fastapi.responses import StreamingResponse
from sqlalchemy import select

from service import model_registry
from service.api.dependencies import ReadSession, StorageDependency
from service.api.paging import Cursor, Limit, Page, fetch_page
from service.database.tables import Model
from service.resources import ModelResource

router = APIRouter(tags=["models"])


def _resource(model: Model) -> ModelResource:
    return ModelResource(
        id=model.id,
        job=model.job_id,
        version=model.version_id,
        metrics=model.report.get("metrics", {}),
        operating_point=model.report.get("operating_point", {}),
        created_at=model.created_at,
    )


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
    return Page(items=[_resource(model) for model in rows], next_cursor=following)


@router.get("/models/{model_id}")
def get_model(model_id: str, session: ReadSession) -> ModelResource:
    """Return a model with its metrics on the test split and its operating point."""
    return _resource(model_registry.get(session, model_id))


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
