"""Models: taking the bundle of a finished run into storage, and finding it there."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from models import load_bundle
from service.database.tables import Model
from service.errors import InvalidRequest, NotFound, StorageError
from service.jobs.run_directory import BUNDLE_DIR, REPORT_FILE
from service.storage import Storage
from service.tar_stream import tar_of


def model_id_of(job_id: str) -> str:
    """Return the id of the one model that a job makes.

    It follows from the job's, so that registering again after a crash finds what the first attempt
    left instead of leaving a second copy.
    """
    return "mdl_" + job_id.removeprefix("job_")


def publish_bundle(storage: Storage, job_id: str, run_dir: Path) -> str:
    """Copy a finished run's bundle into storage, prove that it loads, and return the model's id.

    Side effects: the bundle's directory appears whole or not at all; one that is there stays.

    Raises:
        BundleError: The bundle is missing or damaged.
        StorageError: The disk failed.
    """
    load_bundle(run_dir / BUNDLE_DIR)
    model_id = model_id_of(job_id)
    target = storage.bundle_dir(model_id)
    if target.exists():
        return model_id
    partial = target.with_name(f".{target.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(run_dir / BUNDLE_DIR, partial)
        partial.rename(target)
    except OSError as error:
        raise StorageError(
            "bundle_not_kept",
            f"the bundle of {job_id} could not be copied to {target}: {error}",
            hint="free space under the storage directory, then resume the job",
        ) from error
    return model_id


def read_report(run_dir: Path) -> dict[str, Any]:
    """Return a finished run's report.

    Raises:
        StorageError: It is missing or damaged.
    """
    path = run_dir / REPORT_FILE
    try:
        report = json.loads(path.read_bytes())
        if not isinstance(report, dict):
            raise ValueError("it is no JSON object")  # noqa: TRY004, TRY301 - one way out for all.
    except (OSError, ValueError) as error:
        raise StorageError("report_damaged", f"{path}: {error}") from error
    return report


def add(
    session: Session, model_id: str, job_id: str, version_id: str, report: dict[str, Any]
) -> None:
    """Add a model's row unless it is there."""
    if session.get(Model, model_id) is None:
        session.add(Model(id=model_id, job_id=job_id, version_id=version_id, report=report))


def check_named(session: Session, model_id: str) -> None:
    """Refuse a request whose body names a model that is not there.

    Raises:
        InvalidRequest: At ``/model``, since the address itself is right.
    """
    try:
        get(session, model_id)
    except NotFound as error:
        raise InvalidRequest(error.code, error.detail, where="/model", hint=error.hint) from error


def get(session: Session, model_id: str) -> Model:
    """Return a model.

    Raises:
        NotFound: There is no such model.
    """
    model = session.get(Model, model_id)
    if model is None:
        raise NotFound(
            "model_not_found", f"there is no model {model_id}", hint="GET /models lists them"
        )
    return model


def bundle_files(storage: Storage, model_id: str) -> list[Path]:
    """Return the files of a model's bundle, in order of their names.

    Raises:
        StorageError: The bundle is not in storage, although its row is.
    """
    folder = storage.bundle_dir(model_id)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if not files:
        raise StorageError("bundle_missing", f"the bundle of {model_id} is not at {folder}")
    return files


def bundle_tar(storage: Storage, model_id: str, files: list[Path]) -> Iterator[bytes]:
    """Yield a tar archive of a bundle piece by piece; the same bundle gives the same bytes."""
    folder = storage.bundle_dir(model_id)
    return tar_of({f"{model_id}/{path.relative_to(folder).as_posix()}": path for path in files})
