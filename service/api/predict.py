"""``/predict``: one frame in, the verdict out."""

import time
from dataclasses import dataclass
from typing import Annotated, get_args

from fastapi import APIRouter, Depends, Query, Request, Response

from models import BundleInfo
from service import model_registry
from service.api.answers import json_response
from service.api.dependencies import (
    AnswersDependency,
    FrameThreadsDependency,
    InferenceDependency,
    InspectionsDependency,
)
from service.api.frame_body import REQUEST_BODY, read_frame
from service.api.inspections import Draft, Wish
from service.errors import InvalidRequest
from service.resources import Prediction
from service.serving import deployments
from service.serving.deployments import Served
from service.serving.inference import InferenceEngine
from service.serving.pictures import Picture

router = APIRouter(tags=["predict"])

RUN_LENGTHS = "rle"
# A name, a serial number, a lot and a place; the ledger keeps it with every verdict.
_LONGEST_PART_ID = 200

PartId = Annotated[
    str, Query(min_length=1, max_length=_LONGEST_PART_ID, description="The part that is shown.")
]


@dataclass(frozen=True)
class PredictionQuery:
    """What the query of a call for a verdict says, and when its request's head had arrived."""

    begin_s: float
    deployment: str | None
    model: str | None
    include: str | None
    deadline_ms: float | None

    def wish(self, request: Request, part_id: str | None) -> Wish:
        """Return what is asked for, of which model.

        Raises:
            InvalidRequest: It can't be meant.
            NotFound: There is no such model or deployment.
        """
        wanted = self.include.split(",") if self.include else []
        pictures = _pictures([name for name in wanted if name != RUN_LENGTHS])
        served = _chosen_model(request, self.deployment, self.model)
        end_s = None if self.deadline_ms is None else self.begin_s + self.deadline_ms / 1000
        return Wish(
            served=served,
            request_id=request.scope["state"]["request_id"],
            begin_s=self.begin_s,
            deadline_s=end_s,
            pictures=pictures,
            run_lengths=RUN_LENGTHS in wanted,
            part_id=part_id,
        )


async def read_query(
    deployment: Annotated[str | None, Query(description="Default: `default`.")] = None,
    model: Annotated[str | None, Query(description="A model by its id instead.")] = None,
    include: Annotated[
        str | None,
        Query(description="Wanted of `mask,overlay,heatmap,probabilities` (PNG) and `rle`."),
    ] = None,
    deadline_ms: Annotated[
        float | None,
        Query(gt=0, allow_inf_nan=False, description="After it the verdict is NOT_INSPECTED."),
    ] = None,
) -> PredictionQuery:
    """Return what the query says; not in a thread, since its clock begins here."""
    return PredictionQuery(time.perf_counter(), deployment, model, include, deadline_ms)


PredictionQueryDependency = Annotated[PredictionQuery, Depends(read_query)]


@router.post("/predict", openapi_extra=REQUEST_BODY, response_model=Prediction)
async def predict(
    request: Request,
    query: PredictionQueryDependency,
    inference: InferenceDependency,
    inspections: InspectionsDependency,
    threads: FrameThreadsDependency,
    answers: AnswersDependency,
    part_id: PartId | None = None,
) -> Response:
    """Inspect one frame: a multipart ``file``, the raw picture as the body, or a camera's buffer.

    A buffer is ``application/octet-stream`` with ``X-Width``, ``X-Height`` and ``X-Pixel-Format``.
    """
    wish, model = await threads.answer(lambda: ask(request, query, part_id, inference))
    drafts = await inspections.inspect(request, wish, model, read_frame)
    (draft,) = drafts or [Draft()]
    return json_response(
        await threads.answer(lambda: answers.frame(draft, wish, model).model_dump_json())
    )


def ask(
    request: Request, query: PredictionQuery, part_id: str | None, inference: InferenceEngine
) -> tuple[Wish, BundleInfo]:
    """Return what a request wishes, and the description of the model that it asks.

    Raises:
        BundleError: The model's bundle is missing or damaged.
        InvalidRequest: The query can't be meant.
        NotFound: There is no such model or deployment.
    """
    wish = query.wish(request, part_id)
    return wish, inference.describe(wish.served.model_id)


def _pictures(wanted: list[str]) -> tuple[Picture, ...]:
    known: dict[str, Picture] = {name: name for name in get_args(Picture)}
    asked = dict.fromkeys(wanted)
    for name in asked:
        if name not in known:
            raise InvalidRequest(
                "unknown_picture",
                f"there is no picture {name!r}",
                where="query/include",
                hint=f"choose of {','.join([*known, RUN_LENGTHS])}",
            )
    return tuple(known[name] for name in asked)


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
