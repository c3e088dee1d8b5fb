"""``/models/{id}/engines`` and ``/exports``: what runs a model on this machine, and its files."""

from typing import Annotated

from fastapi import APIRouter, Path
from fastapi.responses import StreamingResponse

from models import read_bundle_info
from models.exporting import check_exportable
from service import model_registry
from service.api.dependencies import (
    ReadSession,
    SettingsDependency,
    StorageDependency,
    WriteSession,
)
from service.database.tables import EngineTask
from service.serving import engines
from service.serving.engine_resources import EnginesResource

router = APIRouter(tags=["models"])


@router.get("/models/{model_id}/engines")
def get_engines(
    model_id: str,
    session: ReadSession,
    storage: StorageDependency,
    settings: SettingsDependency,
) -> EnginesResource:
    """Return which engine serves a model here, how fast each was, and how it judged."""
    model_registry.get(session, model_id)
    task = session.get(EngineTask, model_id)
    return engines.resource(task, model_id, storage, settings.device)


@router.post("/models/{model_id}/engines", status_code=202)
def prepare_engines(
    model_id: str,
    reading: ReadSession,
    writing: WriteSession,
    storage: StorageDependency,
    settings: SettingsDependency,
) -> EnginesResource:
    """Export a model, compare and time every engine on this machine; the worker does it.

    Asked again it is done again, for another processor or other libraries.
    """
    model_registry.get(reading, model_id)
    check_exportable(read_bundle_info(storage.bundle_dir(model_id)))
    task = engines.request(writing, model_id, anew=True)
    return engines.resource(task, model_id, storage, settings.device)


@router.get(
    "/models/{model_id}/exports/{form}",
    response_class=StreamingResponse,
    responses={200: {"content": {"application/x-tar": {}}, "description": "The exported files."}},
)
def get_export(
    model_id: str,
    form: Annotated[engines.ExportFormat, Path(description="`onnx` or `openvino`.")],
    session: ReadSession,
    storage: StorageDependency,
) -> StreamingResponse:
    """Download an exported model as a tar archive; refused if any verdict differed."""
    model_registry.get(session, model_id)
    info = read_bundle_info(storage.bundle_dir(model_id))
    check_exportable(info)
    return StreamingResponse(
        engines.export_tar(storage, model_id, info, form),
        media_type="application/x-tar",
        headers={"Content-Disposition": f'attachment; filename="{model_id}-{form}.tar"'},
    )
