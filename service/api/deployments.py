"""``/deployments``: which model a name serves; a new one is loaded before the old one leaves."""

from typing import Annotated

from fastapi import APIRouter, Path, Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import select

from service import deployments, model_registry
from service.api.dependencies import InferenceDependency, ReadSession, WriteSession
from service.api.paging import Cursor, Limit, Page, fetch_page
from service.database.tables import Deployment
from service.errors import InvalidRequest, NotFound
from service.resources import DeploymentResource

router = APIRouter(tags=["deployments"])

Name = Annotated[str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", examples=["line-1"])]


class DeploymentRequest(BaseModel):
    """Which model to serve."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"model": "mdl_4k7z1m9q2w8x5v3t"}]},
    )

    model: Annotated[str, Field(min_length=1, max_length=32)]


def _resource(deployment: Deployment) -> DeploymentResource:
    return DeploymentResource(
        name=deployment.name,
        model=deployment.model_id,
        previous_model=deployment.previous_model_id,
        updated_at=deployment.updated_at,
    )


@router.get("/deployments")
def list_deployments(
    session: ReadSession, limit: Limit = 50, cursor: Cursor = None
) -> Page[DeploymentResource]:
    """List deployments by name."""
    rows, following = fetch_page(
        session, select(Deployment), order=(Deployment.name,), limit=limit, cursor=cursor
    )
    return Page(items=[_resource(row) for row in rows], next_cursor=following)


@router.get("/deployments/{name}")
def get_deployment(name: Name, session: ReadSession) -> DeploymentResource:
    """Return what a name serves."""
    return _resource(deployments.get(session, name))


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
    response: Response,
) -> DeploymentResource:
    """Serve a model under a name; requests under way finish on the model they began with."""
    try:
        model_registry.get(reading, body.model)
    except NotFound as error:
        raise InvalidRequest(error.code, error.detail, where="/model", hint=error.hint) from error
    inference.warm(body.model)
    deployment, created = deployments.put(writing, name, body.model)
    response.status_code = 201 if created else 200
    return _resource(deployment)


@router.post("/deployments/{name}:rollback")
def roll_back_deployment(
    name: Name, reading: ReadSession, writing: WriteSession, inference: InferenceDependency
) -> DeploymentResource:
    """Serve the model before again."""
    previous = deployments.previous_model(deployments.get(reading, name))
    inference.warm(previous)
    return _resource(deployments.roll_back(writing, name, previous))
