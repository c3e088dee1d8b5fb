"""``/predict/part``: all frames of one part in, one verdict out."""

from typing import Any

from fastapi import APIRouter, Request, Response

from service.api.answers import json_response
from service.api.dependencies import (
    AnswersDependency,
    FrameThreadsDependency,
    InferenceDependency,
    InspectionsDependency,
)
from service.api.frame_body import MOST_FRAMES, read_part_frames
from service.api.predict import PartId, PredictionQueryDependency, ask
from service.resources import PartPrediction

router = APIRouter(tags=["predict"])

_FILES = {"type": "string", "format": "binary"}
_REQUEST_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": {
                            "type": "array",
                            "items": _FILES,
                            "minItems": 1,
                            "maxItems": MOST_FRAMES,
                        }
                    },
                },
                "example": {"file": ["(the bytes of top.png)", "(the bytes of side.png)"]},
            },
        },
    },
}


@router.post("/predict/part", openapi_extra=_REQUEST_BODY, response_model=PartPrediction)
async def predict_part(
    request: Request,
    query: PredictionQueryDependency,
    inference: InferenceDependency,
    inspections: InspectionsDependency,
    threads: FrameThreadsDependency,
    answers: AnswersDependency,
    part_id: PartId,
) -> Response:
    """Inspect the frames of one part, each a multipart ``file``, and give the part one verdict.

    NG if any frame is; OK only if every one is; else NOT_INSPECTED.
    """
    wish, model = await threads.answer(lambda: ask(request, query, part_id, inference))
    drafts = await inspections.inspect(request, wish, model, read_part_frames)
    return json_response(
        await threads.answer(lambda: answers.part(drafts, wish, part_id, model).model_dump_json())
    )
