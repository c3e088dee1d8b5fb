"""``/deployments``: which model a name serves; a new one is loaded before the old one leaves."""

from typing import Annotated

from fastapi import APIRouter, Body, Header, Path, Query, Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import select
from sqlalchemy.orm import Session

from service import model_registry
from service.api.dependencies import (
    InferenceDependency,
    ReadSession,
    RecorderDependency,
    SettingsDependency,
    WriteSession,
)
from service.api.paging import Cursor, Limit, Page, fetch_page
from service.database.tables import Deployment, DeploymentEvent, ShadowRun
from service.ledger.recorder import PredictionRecorder
from service.serving import deployments, engines
from service.serving.deployment_resources import (
    Constraint,
    DeploymentEventResource,
    DeploymentResource,
    Gate,
    Keeping,
    ModelId,
    Override,
    Person,
    Reason,
)
from service.serving.deployments import Author, Promotion
from service.settings import Settings

router = APIRouter(tags=["deployments"])

Name = Annotated[str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", examples=["line-1"])]
User = Annotated[
    str | None,
    Header(
        alias="X-Hairline-User",
        max_length=200,
        description="Who asks, for the history; `by` in the body says it instead.",
    ),
]


Because = Annotated[
    str | None, Query(alias="reason", max_length=2000, description="Why, for the history.")
]


def named(user: str | None) -> str | None:
    """Return who a header names; one in UTF-8 arrives as if it were in Latin-1."""
    name = (user or "").strip()
    try:
        name = name.encode("latin-1").decode()
    except UnicodeError:
        return name or None
    return name or None


class AuthoredRequest(BaseModel):
    """A change that says who asks for it and why."""

    model_config = ConfigDict(extra="forbid")

    by: Annotated[Person | None, Field(description="Who asks, for the history.")] = None
    reason: Annotated[Reason | None, Field(description="Why, for the history.")] = None

    def author(self, user: str | None) -> Author:
        """Return who asks: the body's own word before the header's."""
        return Author(self.by or named(user), self.reason)


class DeploymentRequest(AuthoredRequest):
    """Which model to serve, and what it must prove."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"model": "mdl_4k7z1m9q2w8x5v3t"},
                {
                    "model": "mdl_4k7z1m9q2w8x5v3t",
                    "constraint": {"escape": {"max_rate": 0.01}},
                    "by": "M. Weber",
                    "reason": "new lot of sheets",
                },
            ]
        },
    )

    model: ModelId
    constraint: Annotated[
        Constraint | None,
        Field(description="Left out, the one in force stays; null asks nothing any more."),
    ] = None
    override: Annotated[
        Override | None,
        Field(description="Serves the model although it does not prove the constraint."),
    ] = None


class RollbackRequest(AuthoredRequest):
    """Why the model is given up."""

    given_up: Annotated[
        ModelId | None,
        Field(description="The model to leave: nothing is done if another one is served."),
    ] = None
    override: Override | None = None


RollbackBody = Annotated[
    RollbackRequest | None,
    Body(examples=[{"given_up": "mdl_4k7z1m9q2w8x5v3t", "reason": "false alarms"}]),
]


@router.get("/deployments")
def list_deployments(
    session: ReadSession, limit: Limit = 50, cursor: Cursor = None
) -> Page[DeploymentResource]:
    """List deployments by name."""
    rows, following = fetch_page(
        session, select(Deployment), order=(Deployment.name,), limit=limit, cursor=cursor
    )
    return Page(items=[resource(session, row) for row in rows], next_cursor=following)


@router.get("/deployments/{name}")
def get_deployment(name: Name, session: ReadSession) -> DeploymentResource:
    """Return what a name serves, what it asks of models, and how the served one stands to that."""
    return resource(session, deployments.get(session, name))


@router.put(
    "/deployments/{name}",
    responses={201: {"model": DeploymentResource, "description": "The deployment is new."}},
)
def put_deployment(
    name: Name,
    body: DeploymentRequest,
    reading: ReadSession,
    writing: WriteSession,
    inference: InferenceDependency,
    recorder: RecorderDependency,
    settings: SettingsDependency,
    response: Response,
    user: User = None,
) -> DeploymentResource:
    """Serve a model under a name, if it proves the deployment's constraint.

    Requests under way finish on the model they began with. The new one is loaded first; if that
    fails, or the gate refuses it, the deployment stays as it is.
    """
    model_registry.check_named(reading, body.model)
    promotion = Promotion(
        model_id=body.model,
        info=inference.describe(body.model),
        sets_constraint="constraint" in body.model_fields_set,
        constraint=body.constraint,
        override=body.override,
    )
    deployments.check(reading, name, promotion)
    inference.warm(body.model)
    deployment, event = deployments.put(writing, name, promotion, body.author(user))
    ask_for_engines(settings, writing, promotion)
    response.status_code = 201 if event is not None and event.kind == "created" else 200
    return told(writing, recorder, deployment, event)


@router.post("/deployments/{name}:rollback")
def roll_back_deployment(
    name: Name,
    reading: ReadSession,
    writing: WriteSession,
    inference: InferenceDependency,
    recorder: RecorderDependency,
    body: RollbackBody = None,
    user: User = None,
) -> DeploymentResource:
    """Serve the model before again; a second call goes one further back."""
    body = body or RollbackRequest()
    previous = deployments.previous_model(deployments.get(reading, name))
    promotion = Promotion(previous, inference.warm(previous), override=body.override)
    deployment, event = deployments.roll_back(
        writing, name, promotion, body.author(user), given_up=body.given_up
    )
    return told(writing, recorder, deployment, event)


@router.get("/deployments/{name}/history")
def list_history(
    name: Name, session: ReadSession, limit: Limit = 50, cursor: Cursor = None
) -> Page[DeploymentEventResource]:
    """List what was changed, by whom and why, newest first."""
    deployments.get(session, name)
    rows, following = fetch_page(
        session,
        select(DeploymentEvent).where(DeploymentEvent.deployment == name),
        order=(DeploymentEvent.id,),
        limit=limit,
        cursor=cursor,
        descending=True,
    )
    return Page(items=[_event(row) for row in rows], next_cursor=following)


def ask_for_engines(settings: Settings, session: Session, promotion: Promotion) -> None:
    """Have the worker find what runs a model fastest, unless it was done; detectors have torch."""
    if settings.prepare_engines and promotion.info.task == "segmentation":
        engines.request(session, promotion.model_id)


def told(
    session: Session,
    recorder: PredictionRecorder,
    deployment: Deployment,
    event: DeploymentEvent | None,
) -> DeploymentResource:
    """Write a change into the ledger and return the deployment after it.

    The entry comes before the commit: no prediction of the new model can stand before it. A disk
    that does not take it holds up no rollback; the answer and the history then say so.
    """
    answer = resource(session, deployment)
    if event is None:
        return answer
    event.ledger_sequence = recorder.append(deployments.ledger_body(event))
    if event.ledger_sequence is not None:
        return answer
    warning = "the change is in the history, but could not be recorded in the ledger"
    return answer.model_copy(update={"warnings": (*answer.warnings, warning)})


def resource(session: Session, deployment: Deployment) -> DeploymentResource:
    """Return what the API answers of a deployment."""
    keeping, run_id = deployment.keeping, deployment.shadow_run_id
    return DeploymentResource(
        name=deployment.name,
        model=deployment.model_id,
        previous_model=deployment.trail[-1]["model"] if deployment.trail else None,
        constraint=deployments.constraint_of(deployment),
        gate=Gate.model_validate(deployment.gate),
        keep=None if keeping is None else Keeping.model_validate(keeping),
        shadow=None if run_id is None else session.get_one(ShadowRun, run_id).model_id,
        warnings=deployments.warnings_of(deployment),
        updated_at=deployment.updated_at,
    )


def _event(row: DeploymentEvent) -> DeploymentEventResource:
    return DeploymentEventResource(
        id=row.id,
        kind=row.kind,
        at=row.at,
        by=row.by,
        reason=row.reason,
        model_before=row.model_before,
        model_after=row.model_after,
        gate=Gate.model_validate(row.gate) if row.gate else None,
        details=row.details,
        ledger_sequence=row.ledger_sequence,
    )
