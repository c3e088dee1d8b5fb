"""A model's engines as the service keeps them: asked for here, prepared by the worker.

The row says how the asking stands; what was measured is ``engines.json`` beside the exported files,
which says itself on which machine.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from sqlalchemy.orm import Session

from models import BundleInfo, EngineError, resolve_device
from models.bundle import INFO_NAME
from models.engine_record import (
    RECORD_NAME,
    EngineMeasurement,
    EngineRecord,
    Machine,
    check_usable,
    exported_name,
    load_exported,
    read_record,
)
from models.engines import EngineName
from models.exporting import companion_files
from service.database.tables import EngineTask, now_utc
from service.errors import Conflict
from service.serving.engine_resources import EngineResource, EnginesResource
from service.storage import Storage
from service.tar_stream import tar_of

ExportFormat = Literal["onnx", "openvino"]
_ENGINE_OF: dict[ExportFormat, EngineName] = {
    "onnx": "onnxruntime-fp32",
    "openvino": "openvino-fp32",
}
PENDING = frozenset({"queued", "running"})


def request(session: Session, model_id: str, *, anew: bool = False) -> EngineTask:
    """Ask the worker to prepare a model's engines, and return how that stands.

    Args:
        session: A writing session.
        model_id: A model that is there.
        anew: Ask again although they were prepared before, or could not be.
    """
    task = session.get(EngineTask, model_id, with_for_update=True)
    if task is None:
        task = EngineTask(model_id=model_id, status="queued")
        session.add(task)
    elif anew and task.status not in PENDING:
        task.status, task.error = "queued", None
        task.requested_at, task.finished_at = now_utc(), None
    session.flush()
    return task


def resource(
    task: EngineTask | None, model_id: str, storage: Storage, device: str
) -> EnginesResource:
    """Return what the API tells of the engines of a model that is served on a device."""
    record, unusable = None, None
    try:
        record = read_record(storage.exports_dir(model_id))
    except EngineError as error:
        unusable = error.detail
    if record is not None:
        differences = Machine.here(resolve_device(device)).differences(record.machine)
        unusable = f"measured on another machine: {differences}" if differences else None
    told: dict[str, Any] = {}
    if record is not None:
        told = {
            "chosen": record.chosen,
            "machine": record.machine.model_dump(mode="json"),
            "golden": record.golden.model_dump(mode="json"),
            "frame_size": record.frame_size,
            "engines": tuple(_engine(engine) for engine in record.engines),
        }
    return EnginesResource(
        model=model_id,
        status="none" if task is None else task.status,
        error=None if task is None else task.error,
        unusable=unusable,
        requested_at=None if task is None else task.requested_at,
        finished_at=None if task is None else task.finished_at,
        **told,
    )


def _engine(measured: EngineMeasurement) -> EngineResource:
    parity = measured.parity
    return EngineResource(
        name=measured.name,
        device=measured.device,
        median_ms=measured.median_ms,
        times_faster=measured.times_faster,
        refusal=measured.refusal,
        parity=None if parity is None else parity.model_dump(mode="json"),
    )


def export_tar(
    storage: Storage, model_id: str, info: BundleInfo, form: ExportFormat
) -> Iterator[bytes]:
    """Return a tar archive of an exported model, with its description and its parity.

    Raises:
        Conflict: It was not prepared, its verdicts are not the network's, or its files are damaged.
    """
    folder = storage.exports_dir(model_id)
    try:
        return _export_tar(storage, folder, model_id, info, form)
    except EngineError as error:
        raise Conflict(error.code, error.detail, file=error.file, hint=error.hint) from error


def _export_tar(
    storage: Storage, folder: Path, model_id: str, info: BundleInfo, form: ExportFormat
) -> Iterator[bytes]:
    record = _current_record(folder, model_id, info)
    name = _ENGINE_OF[form]
    measured = record.of(name)
    if measured is None or measured.refusal is not None:
        reason = "it was not compared" if measured is None else measured.refusal
        raise Conflict(
            "export_refused",
            f"the {form} export of {model_id} does not judge as the model does: {reason}",
            hint="serve the model by torch; GET /models/{id}/engines lists what was compared",
        )
    # What leaves is what was compared.
    load_exported(folder, record, name)
    files = [*companion_files(folder / exported_name(name)), folder / RECORD_NAME]
    files.append(storage.bundle_dir(model_id) / INFO_NAME)
    return tar_of({f"{model_id}/{path.name}": path for path in files})


def _current_record(folder: Path, model_id: str, info: BundleInfo) -> EngineRecord:
    record = read_record(folder)
    if record is None:
        raise Conflict(
            "engines_not_prepared",
            f"the exports of {model_id} have not been made and compared yet",
            hint=f"POST /models/{model_id}/engines, and ask again when GET says it is done",
        )
    # Another machine may have measured them: verdicts were compared all the same, with libraries
    # that are named in the archive.
    check_usable(record, info, record.machine)
    return record
