"""``/predict``: one frame in, the verdict out."""

import base64
import hashlib
import time
from dataclasses import dataclass
from typing import Annotated, Any, get_args

from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool

from models import BundleInfo
from service import deployments, model_registry
from service.api.dependencies import InferenceDependency, RecorderDependency
from service.api.frame_body import REQUEST_BODY, UploadedFrame, read_frame
from service.api.request_id import current_request_id
from service.deployments import Served
from service.errors import InvalidRequest
from service.inference import InferenceEngine
from service.pictures import Picture, draw, drawable
from service.resources import (
    DefectResource,
    PredictedBy,
    PredictedImage,
    Prediction,
)

router = APIRouter(tags=["predict"])


@dataclass(frozen=True)
class _Wish:
    served: Served
    include: tuple[Picture, ...]
    deadline_s: float | None


@router.post("/predict", openapi_extra=REQUEST_BODY)
async def predict(
    request: Request,
    inference: InferenceDependency,
    recorder: RecorderDependency,
    deployment: Annotated[str | None, Query(description="Default: `default`.")] = None,
    model: Annotated[str | None, Query(description="A model by its id instead.")] = None,
    include: Annotated[
        str | None, Query(description="Pictures wanted, of `mask,overlay,heatmap,probabilities`.")
    ] = None,
    deadline_ms: Annotated[
        float | None, Query(gt=0, description="After it the verdict is `NOT_INSPECTED`.")
    ] = None,
) -> Prediction:
    """Inspect one frame: a multipart ``file``, the raw picture as the body, or a camera's buffer.

    A buffer is ``application/octet-stream`` with ``X-Width``, ``X-Height`` and ``X-Pixel-Format``.
    """
    begin = time.perf_counter()
    pictures = _pictures(include)
    served = await run_in_threadpool(_chosen_model, request, deployment, model)
    frame = await read_frame(request)
    deadline_s = None if deadline_ms is None else begin + deadline_ms / 1000
    wish = _Wish(served, pictures, deadline_s)

    def inspect_and_record() -> Prediction:
        described = inference.describe(served.model_id)
        answer = _inspect(inference, described, frame, wish, begin)
        return recorder.record(answer, described)

    return await run_in_threadpool(inspect_and_record)


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


def _chosen_model(request: Request, deployment: str | None, model_id: str | None) -> Served:
    """Return the model to ask with what goes with it, read once for the whole request."""
    if deployment is not None and model_id is not None:
        raise InvalidRequest(
            "ambiguous_model",
            "both a deployment and a model are named",
            where="query/model",
            hint="name one of them",
        )
    with request.app.state.read_sessions() as session:
        if model_id is not None:
            return Served(model_registry.get(session, model_id).id)
        return deployments.served(session, deployment or deployments.DEFAULT_NAME)


def _inspect(
    inference: InferenceEngine,
    described: BundleInfo,
    frame: UploadedFrame,
    wish: _Wish,
    begin: float,
) -> Prediction:
    _check_drawable(wish.include, described)
    decode_begin = time.perf_counter()
    decoded = frame.decode(described.preprocessing.bayer)
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
        info, inspection = inference.inspect(wish.served.model_id, decoded.pixels, remaining_s)
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
            id=wish.served.model_id,
            deployment=wish.served.deployment,
            operating_point=info.operating_point.model_dump(mode="json"),
        ),
        timings_ms={**timings, **inspection.timings_ms, **_total(begin)},
        warnings=(*decoded.notes, *inspection.notes, *wish.served.warnings),
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
        model=PredictedBy(
            id=wish.served.model_id, deployment=wish.served.deployment, operating_point={}
        ),
        timings_ms={**timings, **_total(begin)},
        warnings=(
            *notes,
            "the deadline passed before the frame was inspected",
            *wish.served.warnings,
        ),
        pictures={},
        **common,
    )


def _total(begin: float) -> dict[str, float]:
    return {"total": 1000 * (time.perf_counter() - begin)}
