"""``/models/{id}/operating-points``: other thresholds for the same weights."""

from typing import Annotated

from fastapi import APIRouter, Query, status
from pydantic import ConfigDict, Field

from service import model_registry
from service.api.dependencies import (
    ReadSession,
    RecorderDependency,
    StorageDependency,
    WriteSession,
)
from service.api.deployments import AuthoredRequest, User
from service.api.models import resource
from service.resources import ModelResource
from service.serving import operating_points
from service.serving.deployment_resources import (
    Confidence,
    EscapeLimit,
    OperatingPointPreview,
    Rate,
)

router = APIRouter(tags=["models"])


class OperatingPointRequest(AuthoredRequest):
    """What the thresholds are to prove."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"escape": {"max_rate": 0.01}}]}
    )

    escape: EscapeLimit
    keep_unproven: Annotated[
        bool,
        Field(description="Classes that can't be proven keep the thresholds of their run."),
    ] = False


@router.get("/models/{model_id}/operating-points/preview")
def preview_operating_point(
    model_id: str,
    session: ReadSession,
    storage: StorageDependency,
    max_escape: Annotated[Rate, Query(description="Of the defective parts of each class.")],
    confidence: Annotated[Confidence, Query(description="Of the proof.")] = 0.95,
) -> OperatingPointPreview:
    """Return what a bound on escapes would come to: thresholds, proof, escape and overkill."""
    model_registry.get(session, model_id)
    limit = EscapeLimit(max_rate=max_escape, confidence=confidence)
    return operating_points.preview(operating_points.read_evidence(storage, model_id), limit)


@router.post("/models/{model_id}/operating-points", status_code=status.HTTP_201_CREATED)
def post_operating_point(
    model_id: str,
    body: OperatingPointRequest,
    reading: ReadSession,
    writing: WriteSession,
    storage: StorageDependency,
    recorder: RecorderDependency,
    user: User = None,
) -> ModelResource:
    """Make a model of the same weights whose thresholds prove a bound on escapes.

    The model itself stays as it is, and so does whatever is deployed.
    """
    parent = model_registry.get(reading, model_id)
    evidence = operating_points.read_evidence(storage, model_id)
    point = operating_points.solve(evidence, body.escape)
    lacking = operating_points.unproven(evidence, point, body.escape)
    if not body.keep_unproven:
        operating_points.refuse_unproven(lacking, body.escape)
    made_id, metrics = operating_points.make_model(storage, model_id, evidence, point)
    author = body.author(user)
    origin = {
        "by": author.by,
        "reason": author.reason,
        "escape": body.escape.model_dump(mode="json"),
        "unproven": lacking,
    }
    row = operating_points.add(
        writing, parent, made_id, point, {"metrics": metrics, "origin": origin}
    )
    entry = {"kind": "operating_point", "model": made_id, "parent": model_id, **origin}
    row.origin = {**origin, "ledger_sequence": recorder.append(entry)}
    return resource(row)
