"""Deployments: names that ``/predict`` serves, each with the model before for the way back."""

from sqlalchemy import update
from sqlalchemy.orm import Session

from service.database.tables import Deployment
from service.errors import Conflict, NotFound

DEFAULT_NAME = "default"


def get(session: Session, name: str) -> Deployment:
    """Return a deployment.

    Raises:
        NotFound: There is no such deployment.
    """
    deployment = session.get(Deployment, name)
    if deployment is None:
        raise NotFound(
            "deployment_not_found",
            f"there is no deployment {name!r}",
            hint=f'create it with PUT /deployments/{name} {{"model": "mdl_…"}}',
        )
    return deployment


def put(session: Session, name: str, model_id: str) -> tuple[Deployment, bool]:
    """Serve a model under a name; return the deployment and whether it is new.

    Naming the model that is served already changes nothing, so the way back stays open.
    """
    deployment = session.get(Deployment, name, with_for_update=True)
    if deployment is None:
        deployment = Deployment(name=name, model_id=model_id, previous_model_id=None)
        session.add(deployment)
        session.flush()
        return deployment, True
    if deployment.model_id != model_id:
        deployment.previous_model_id = deployment.model_id
        deployment.model_id = model_id
        session.flush()
    return deployment, False


def roll_back(session: Session, name: str, expected_model_id: str) -> Deployment:
    """Serve the model before again; a second call swaps back.

    Args:
        session: A writing session.
        name: The deployment.
        expected_model_id: The model before, as it was when its bundle was loaded.

    Raises:
        NotFound: There is no such deployment.
        Conflict: It has changed since the bundle was loaded.
    """
    deployment = session.scalars(
        update(Deployment)
        .where(Deployment.name == name, Deployment.previous_model_id == expected_model_id)
        .values(model_id=Deployment.previous_model_id, previous_model_id=Deployment.model_id)
        .returning(Deployment)
    ).one_or_none()
    if deployment is None:
        get(session, name)
        raise Conflict(
            "deployment_changed",
            f"deployment {name!r} was changed by somebody else meanwhile",
            hint=f"look at GET /deployments/{name}, then try again",
        )
    return deployment


def previous_model(deployment: Deployment) -> str:
    """Return the model to roll back to.

    Raises:
        Conflict: There is none.
    """
    if deployment.previous_model_id is None:
        raise Conflict(
            "no_previous_model",
            f"deployment {deployment.name!r} has served no other model before",
            hint=f"choose one with PUT /deployments/{deployment.name}",
        )
    return deployment.previous_model_id
