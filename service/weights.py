"""Weights that jobs may start from: files in one folder, put there by the administrator.

A file is named, never a path, and nothing is downloaded.
"""

import json
import re
import struct
from functools import lru_cache
from pathlib import Path

from sqlalchemy.orm import Session

from models.bundle import file_sha256, read_bundle_info
from models.errors import BundleError
from service import model_registry
from service.errors import InvalidRequest, NotFound
from service.jobs.spec import WEIGHTS_NAME_PATTERN, JobSpec
from service.resources import WeightsFileResource
from service.storage import Storage

# Longer than the header of any network here; a length beyond it is no header's.
_MAX_HEADER_BYTES = 16 * 1024**2
_LENGTH_BYTES = 8


def list_files(weights_dir: Path) -> list[WeightsFileResource]:
    """Return the ``.safetensors`` files of the folder by name; those that can't be read say so."""
    if not weights_dir.is_dir():
        return []
    names = sorted(path.name for path in weights_dir.iterdir() if path.is_file())
    return [
        _describe(weights_dir / name) for name in names if re.fullmatch(WEIGHTS_NAME_PATTERN, name)
    ]


def check_start(session: Session, storage: Storage, weights_dir: Path, spec: JobSpec) -> None:
    """Refuse a job whose weights to start from are not there or are of another encoder.

    Raises:
        InvalidRequest: It names the field and the remedy.
    """
    if spec.weights is None:
        return
    if spec.weights.file is not None:
        _check_file(weights_dir, spec.weights.file)
    else:
        assert spec.weights.model is not None  # Its validator has seen to it.
        _check_model(session, storage, spec.weights.model, spec)


def _check_file(weights_dir: Path, name: str) -> None:
    if not (weights_dir / name).is_file():
        raise InvalidRequest(
            "unknown_weights",
            f"there is no file {name} among the installation's weights",
            where="/weights/file",
            hint="GET /weights lists them; `hairline weights import` adds one",
        )
    described = _describe(weights_dir / name)
    if described.error is not None:
        raise InvalidRequest(
            "weights_unreadable",
            f"{name} can't be read: {described.error}",
            where="/weights/file",
            hint="import the checkpoint again with `hairline weights import`",
        )


def _check_model(session: Session, storage: Storage, model_id: str, spec: JobSpec) -> None:
    try:
        model_registry.get(session, model_id)
        earlier = read_bundle_info(storage.bundle_dir(model_id)).model
    except (NotFound, BundleError) as error:
        raise InvalidRequest(
            "unknown_model",
            f"{model_id} can't be started from: {error.detail}",
            where="/weights/model",
            hint="GET /models lists what there is",
        ) from error
    if (earlier.encoder, earlier.encoder_depth) != (spec.model.encoder, spec.model.encoder_depth):
        raise InvalidRequest(
            "weights_of_another_encoder",
            f"{model_id} has encoder {earlier.encoder} of depth {earlier.encoder_depth}, the job "
            f"asks for {spec.model.encoder} of depth {spec.model.encoder_depth}",
            where="/weights/model",
            hint=f'use "encoder": "{earlier.encoder}", "encoder_depth": {earlier.encoder_depth}',
        )


def _describe(path: Path) -> WeightsFileResource:
    status = path.stat()
    try:
        header = _read_header(path)
    except (OSError, ValueError) as error:
        return WeightsFileResource(
            name=path.name, byte_count=status.st_size, tensors=0, error=str(error)
        )
    said = header.pop("__metadata__", {})
    return WeightsFileResource(
        name=path.name,
        byte_count=status.st_size,
        tensors=len(header),
        sha256=_digest(path, status.st_size, status.st_mtime_ns),
        source=said.get("source"),
        encoders=tuple(name for name in said.get("encoders", "").split(",") if name),
    )


def _read_header(path: Path) -> dict[str, dict[str, str]]:
    """Return what a safetensors file says of its tensors, without reading them."""
    with path.open("rb") as file:
        prefix = file.read(_LENGTH_BYTES)
        if len(prefix) < _LENGTH_BYTES:
            raise ValueError("it is too short for a safetensors file")
        (length,) = struct.unpack("<Q", prefix)
        if length > min(_MAX_HEADER_BYTES, path.stat().st_size):
            raise ValueError("it is no safetensors file")
        header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise ValueError("it is no safetensors file")  # noqa: TRY004 - one way out for all.
    return header


@lru_cache(maxsize=256)
def _digest(path: Path, size: int, mtime_ns: int) -> str:  # noqa: ARG001 - they make the key.
    return file_sha256(path)
