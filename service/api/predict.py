"""``/predict``: one frame in, the verdict out."""

import base64
import hashlib
import time
from dataclasses import dataclass
from typing import Annotated, Any, get_args

from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from data import decode_frame
from models import BundleInfo
from service import deployments, model_registry
from service.api.dependencies import InferenceDependency
from service.api.request_id import current_request_id
from service.errors import InvalidRequest, PayloadTooLarge
from service.inference import InferenceEngine
from service.pictures import Picture, draw, drawable
from service.resources import (
    DefectResource,
    PredictedBy,
    PredictedImage,
    Prediction,
)

router = APIRouter(tags=["predict"])

_IMAGE_TYPES = ("image/jpeg", "image/png", "image/bmp", "image/tiff", "image/webp")
_REQUEST_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {"file": {"type": "string", "format": "binary"}},
                },
                "example": {"file": "(the bytes of frame.png)"},
            },
            **{kind: {"schema": {"type": "string", "format": "binary"}} for kind in _IMAGE_TYPES},
        },
    }
}


@dataclass(frozen=True)
class _Frame:
    name: str
    raw: bytes


@dataclass(frozen=True)
class _Wish:
    model_id: str
    deployment: str | None
    include: tuple[Picture, ...]
    deadline_s: float | None


@router.post("/predict", openapi_extra=_REQUEST_BODY)
async def predict(
    request: Request,
    inference: InferenceDependency,
    deployment: Annotated[str | None, Query(description="Default: `default`.")] = None,
    model: Annotated[str | None, Query(description="A model by its id instead.")] = None,
    include: Annotated[
        str | None, Query(description="Pictures wanted, of `mask,overlay,heatmap,probabilities`.")
    ] = None,
    deadline_ms: Annotated[
        float | None, Query(gt=0, description="After it the verdict is `NOT_INSPECTED`.")
    ] = None,
) -> Prediction:
    """Inspect one frame: a multipart ``file``, or the raw picture as the body."""
    begin = time.perf_counter()
    pictures = _pictures(include)
    model_id, name = await run_in_threadpool(_chosen_model, request, deployment, model)
    frame = await _read_frame(request)
    deadline_s = None if deadline_ms is None else begin + deadline_ms / 1000
    wish = _Wish(model_id, name, pictures, deadline_s)
    return await run_in_threadpool(_inspect, inference, frame, wish, begin)


def _pictures(include: str | None) -> tuple[Picture, ...]:
    known: dict[str, Picture] = {name: name for name in get_args(Picture)}
    asked = dict.fromkeys((include or "").split(",")) if include else {}
    for name in asked:
        if name not in known:
            raise InvalidRequest(
                "unknown_picture",
                f"there is no picture {name!r}",
                where="query/include",
                hint=f"choose of {','.join(known)}",
            )
    return tuple(known[name] for name in asked)


def _check_drawable(pictures: tuple[Picture, ...], info: BundleInfo) -> None:
    """Refuse pictures that this kind of model has nothing for.

    Raises:
        InvalidRequest: It names the first one and what can be asked for instead.
    """
    possible = drawable(info)
    for name in pictures:
        if name not in possible:
            raise InvalidRequest(
                "picture_not_available",
                f"the model answers with boxes, not with pixels: there is no {name} to draw",
                where="query/include",
                hint=f"include={','.join(possible)} draws what it found",
            )


def _chosen_model(
    request: Request, deployment: str | None, model_id: str | None
) -> tuple[str, str | None]:
    """Return the model to ask, and the deployment that named it."""
    if deployment is not None and model_id is not None:
        raise InvalidRequest(
            "ambiguous_model",
            "both a deployment and a model are named",
            where="query/model",
            hint="name one of them",
        )
    with request.app.state.read_sessions() as session:
        if model_id is not None:
            return model_registry.get(session, model_id).id, None
        name = deployment or deployments.DEFAULT_NAME
        return deployments.get(session, name).model_id, name


async def _read_frame(request: Request) -> _Frame:
    limit = request.app.state.settings.max_file_bytes
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await _read_part(request, limit)
    if kind not in _IMAGE_TYPES:
        raise InvalidRequest(
            "unsupported_media_type",
            f"a body of type {kind or 'unknown'!r} can't be inspected",
            where="header/Content-Type",
            hint=f"send a multipart part named file, or one of {', '.join(_IMAGE_TYPES)}",
        )
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > limit:
            raise _too_large("the body", limit)
    return _Frame("body", bytes(raw))


async def _read_part(request: Request, limit: int) -> _Frame:
    async with request.form(max_files=1, max_fields=1) as form:
        part = form.get("file")
        if not isinstance(part, UploadFile):
            raise InvalidRequest(
                "missing_file",
                "the form has no file part named 'file'",
                where="/file",
                hint="curl -F file=@frame.png …/predict",
            )
        name = part.filename or "file"
        if part.size is not None and part.size > limit:
            raise _too_large(name, limit)
        return _Frame(name, await part.read())


def _too_large(name: str, limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(
        "file_too_large",
        f"{name} has more than {limit} bytes",
        file=name,
        hint="raise HAIRLINE_MAX_FILE_BYTES if frames are that large",
    )


def _inspect(inference: InferenceEngine, frame: _Frame, wish: _Wish, begin: float) -> Prediction:
    decode_begin = time.perf_counter()
    described = inference.describe(wish.model_id)
    _check_drawable(wish.include, described)
    decoded = decode_frame(frame.raw, name=frame.name, bayer=described.preprocessing.bayer)
    timings = {"decode": 1000 * (time.perf_counter() - decode_begin)}
    height, width = decoded.pixels.shape[:2]
    common: dict[str, Any] = {
        "image": PredictedImage(
            width=width, height=height, sha256=hashlib.sha256(frame.raw).hexdigest()
        ),
        "request_id": current_request_id(),
    }
    remaining_s = None if wish.deadline_s is None else wish.deadline_s - time.perf_counter()
    try:
        info, inspection = inference.inspect(wish.model_id, decoded.pixels, remaining_s)
    except TimeoutError:
        return _not_inspected(wish, decoded.notes, timings, begin, common)
    drawn = draw(wish.include, decoded.pixels, info, inspection)
    if wish.deadline_s is not None and time.perf_counter() > wish.deadline_s:
        return _not_inspected(wish, decoded.notes, timings, begin, common)
    return Prediction(
        verdict=inspection.verdict,
        defects=tuple(
            DefectResource(
                class_name=defect.class_name,
                score=defect.score,
                box=defect.box,
                area_px=defect.area_px,
                polygon=defect.polygon,
            )
            for defect in inspection.defects
        ),
        model=PredictedBy(
            id=wish.model_id,
            deployment=wish.deployment,
            operating_point=info.operating_point.model_dump(mode="json"),
        ),
        timings_ms={**timings, **inspection.timings_ms, **_total(begin)},
        warnings=(*decoded.notes, *inspection.notes),
        pictures={name: base64.b64encode(png).decode() for name, png in drawn.items()},
        **common,
    )


def _not_inspected(
    wish: _Wish,
    notes: tuple[str, ...],
    timings: dict[str, float],
    begin: float,
    common: dict[str, Any],
) -> Prediction:
    """Return the answer past the deadline: a late OK would let a bad part through."""
    return Prediction(
        verdict="NOT_INSPECTED",
        defects=(),
        model=PredictedBy(id=wish.model_id, deployment=wish.deployment, operating_point={}),
        timings_ms={**timings, **_total(begin)},
        warnings=(*notes, "the deadline passed before the frame was inspected"),
        pictures={},
        **common,
    )


def _total(begin: float) -> dict[str, float]:
    return {"total": 1000 * (time.perf_counter() - begin)}
