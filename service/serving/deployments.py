"""Deployments: names that ``/predict`` serves, what each asks of a model, and the way back.

A change is one row of history and one entry of the ledger, written in the transaction that makes it
true.  The way back is a trail: a rollback serves the model before and takes it off the trail, so
that a second rollback goes one further back and never to the model that was just given up
(``docs/decisions/0034``).
"""

from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from models import BundleInfo
from service.database.tables import Deployment, DeploymentEvent, ShadowRun
from service.errors import Conflict, NotFound
from service.serving.deployment_resources import Constraint, Gate, Keeping, Override, ShadowWish
from service.serving.promotion import judge, refusal

DEFAULT_NAME = "default"
# A rollback is for hours and days; who wants an older model names it.
_LONGEST_TRAIL = 50


@dataclass(frozen=True)
class Author:
    """Who changes something and why, as far as the request says."""

    by: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Promotion:
    """A model to serve.

    Attributes:
        model_id: Which.
        info: Its description.
        sets_constraint: Whether ``constraint`` replaces the one in force.
        constraint: What is asked of models from now on; None asks nothing.
        override: Lets it through in any case.
    """

    model_id: str
    info: BundleInfo
    sets_constraint: bool = False
    constraint: Constraint | None = None
    override: Override | None = None


@dataclass(frozen=True)
class Shadowing:
    """The comparison that frames of a deployment may take part in."""

    run_id: int
    wish: ShadowWish


@dataclass(frozen=True)
class Served:
    """What a prediction is made with, read once: a swap meanwhile changes nothing of it.

    Attributes:
        model_id: The model.
        deployment: The name it was asked under; None if the model was named itself.
        warnings: What each answer has to say of it.
        shadow: The model that may see the frame, too.
        keeping: Which frames are kept.
    """

    model_id: str
    deployment: str | None = None
    warnings: tuple[str, ...] = ()
    shadow: Shadowing | None = None
    keeping: Keeping | None = None


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


def served(session: Session, name: str) -> Served:
    """Return all that a prediction needs to know of a deployment.

    Raises:
        NotFound: There is no such deployment.
    """
    deployment = get(session, name)
    keeping = deployment.keeping
    return Served(
        model_id=deployment.model_id,
        deployment=name,
        warnings=warnings_of(deployment),
        shadow=_shadowing(session, deployment),
        keeping=None if keeping is None else Keeping.model_validate(keeping),
    )


def _shadowing(session: Session, deployment: Deployment) -> Shadowing | None:
    if deployment.shadow_run_id is None:
        return None
    run = session.get_one(ShadowRun, deployment.shadow_run_id)
    return Shadowing(run.id, ShadowWish.model_validate(run.wish))


def warnings_of(deployment: Deployment) -> tuple[str, ...]:
    """Return what a person has to know who relies on a deployment."""
    gate = Gate.model_validate(deployment.gate)
    if gate.outcome != "overridden" or gate.override is None:
        return ()
    lacking = "; ".join(shortfall.detail for shortfall in gate.shortfalls)
    warning = (
        f"deployment {deployment.name!r} serves a model that does not prove its constraint, by "
        f"override of {gate.override.by}: {gate.override.reason} ({lacking})"
    )
    return (warning,)


def constraint_of(deployment: Deployment) -> Constraint | None:
    """Return what a deployment asks of its models."""
    asked = deployment.promotion_constraint
    return None if asked is None else Constraint.model_validate(asked)


def put(
    session: Session, name: str, promotion: Promotion, author: Author
) -> tuple[Deployment, DeploymentEvent | None]:
    """Serve a model under a name, if it proves what the deployment asks.

    Naming what is served already, under the same constraint, changes nothing and is no event.

    Args:
        session: A writing session.
        name: The deployment, which may be new.
        promotion: The model, its override, and the constraint if it is to be another one.
        author: Who and why.

    Returns:
        The deployment and the event of the change, ``created`` for a new one.

    Raises:
        ConstraintNotMet: The model does not prove it, and there is no override.
        InvalidRequest: The constraint names a class that the model does not know.
    """
    before = session.get(Deployment, name, with_for_update=True)
    known = None if before is None else constraint_of(before)
    constraint = promotion.constraint if promotion.sets_constraint else known
    gate = _passed(name, promotion, constraint, _override_in_force(before, promotion, constraint))
    if before is None:
        deployment = Deployment(name=name, model_id=promotion.model_id, trail=[])
        _take_over(deployment, constraint, gate)
        session.add(deployment)
        session.flush()
        return deployment, record(session, deployment, "created", author, gate=gate)
    model_before, gate_before = before.model_id, before.gate
    if model_before != promotion.model_id:
        before.trail = [*before.trail, _step(before)][-_LONGEST_TRAIL:]
        before.model_id = promotion.model_id
    _take_over(before, constraint, gate)
    kind = _kind_of_change(before, model_before, known, constraint, gate_before)
    if kind is None:
        return before, None
    session.flush()
    changed = {} if known == constraint else {"constraint_before": _plain(known)}
    event = record(
        session, before, kind, author, gate=gate, model_before=model_before, details=changed
    )
    return before, event


def check(session: Session, name: str, promotion: Promotion) -> None:
    """Refuse what `put` would refuse, before a bundle is loaded for it.

    Raises:
        ConstraintNotMet: The model does not prove what the deployment asks.
        InvalidRequest: The constraint names a class that the model does not know.
    """
    deployment = session.get(Deployment, name)
    known = None if deployment is None else constraint_of(deployment)
    constraint = promotion.constraint if promotion.sets_constraint else known
    _passed(name, promotion, constraint, _override_in_force(deployment, promotion, constraint))


def previous_model(deployment: Deployment) -> str:
    """Return the model that a rollback serves.

    Raises:
        Conflict: There is none.
    """
    if not deployment.trail:
        raise Conflict(
            "no_previous_model",
            f"deployment {deployment.name!r} has no earlier model to go back to",
            hint=f"choose one with PUT /deployments/{deployment.name}",
        )
    model: str = deployment.trail[-1]["model"]
    return model


def roll_back(
    session: Session,
    name: str,
    promotion: Promotion,
    author: Author,
    *,
    given_up: str | None = None,
) -> tuple[Deployment, DeploymentEvent]:
    """Serve the model before again; a second call goes one further back.

    The model that is left is taken off the trail wherever it stands there: no rollback leads to it
    before it is promoted again.  The gate judges it as any other; a model that was served before
    under an override of the very constraint that is in force now is let through by that override.

    Args:
        session: A writing session.
        name: The deployment.
        promotion: The model before, as it was when its bundle was loaded.
        author: Who and why.
        given_up: The model to leave; if another one is served, nothing is done.

    Raises:
        NotFound: There is no such deployment.
        Conflict: It has changed since the bundle was loaded, or serves another model than
            ``given_up``.
        ConstraintNotMet: The model before does not prove what is asked.
    """
    session.get(Deployment, name, with_for_update=True)
    deployment = get(session, name)
    if given_up is not None and deployment.model_id != given_up:
        raise Conflict(
            "deployment_changed",
            f"deployment {name!r} serves {deployment.model_id}, not {given_up}",
            hint="somebody has given that model up already; nothing was done",
        )
    if previous_model(deployment) != promotion.model_id:
        raise Conflict(
            "deployment_changed",
            f"deployment {name!r} was changed by somebody else meanwhile",
            hint=f"look at GET /deployments/{name}, then try again",
        )
    constraint = constraint_of(deployment)
    step = deployment.trail[-1]
    gate = _passed(name, promotion, constraint, _override_before(step, constraint))
    model_before = deployment.model_id
    deployment.model_id = promotion.model_id
    left = {model_before, promotion.model_id}
    deployment.trail = [each for each in deployment.trail if each["model"] not in left]
    _take_over(deployment, constraint, gate)
    session.flush()
    event = record(session, deployment, "rolled_back", author, gate=gate, model_before=model_before)
    return deployment, event


def record(
    session: Session,
    deployment: Deployment,
    kind: str,
    author: Author,
    *,
    gate: Gate | None = None,
    model_before: str | None = None,
    details: dict[str, Any] | None = None,
) -> DeploymentEvent:
    """Add an event to a deployment's history and return it with its number.

    An override's own author and reason stand in for those that the request lacks.
    """
    override = None if gate is None else gate.override
    event = DeploymentEvent(
        deployment=deployment.name,
        kind=kind,
        by=author.by or (override.by if override else None),
        reason=author.reason or (override.reason if override else None),
        model_before=None if kind == "created" else model_before or deployment.model_id,
        model_after=deployment.model_id,
        gate={} if gate is None else gate.model_dump(mode="json"),
        details={"constraint": deployment.promotion_constraint, **(details or {})},
    )
    session.add(event)
    session.flush()
    return event


def ledger_body(event: DeploymentEvent) -> dict[str, Any]:
    """Return the entry of the ledger that tells of an event between predictions."""
    return {
        "kind": "deployment",
        "deployment": event.deployment,
        "event": event.id,
        "change": event.kind,
        "by": event.by,
        "reason": event.reason,
        "model_before": event.model_before,
        "model": event.model_after,
        "gate": event.gate.get("outcome"),
        "override": event.gate.get("override"),
        "details": event.details,
    }


def _passed(
    name: str,
    promotion: Promotion,
    constraint: Constraint | None,
    known_override: Override | None = None,
) -> Gate:
    override = promotion.override or known_override
    gate = judge(promotion.info, constraint, override)
    if gate.outcome == "refused":
        raise refusal(name, promotion.model_id, gate)
    return gate


def _take_over(deployment: Deployment, constraint: Constraint | None, gate: Gate) -> None:
    deployment.promotion_constraint = _plain(constraint)
    deployment.gate = gate.model_dump(mode="json")


def _step(deployment: Deployment) -> dict[str, Any]:
    """Return what the way back has to know of the model that is served."""
    override = deployment.gate.get("override")
    step: dict[str, Any] = {"model": deployment.model_id}
    if override is None:
        return step
    return {**step, "override": override, "constraint": deployment.promotion_constraint}


def _override_in_force(
    deployment: Deployment | None, promotion: Promotion, constraint: Constraint | None
) -> Override | None:
    """Return the override that goes on to hold: of the model and the constraint that stay."""
    if deployment is None or deployment.model_id != promotion.model_id:
        return None
    return _override_before(_step(deployment), constraint)


def _override_before(step: dict[str, Any], constraint: Constraint | None) -> Override | None:
    if "override" not in step or step["constraint"] != _plain(constraint):
        return None
    return Override.model_validate(step["override"])


def _kind_of_change(
    deployment: Deployment,
    model_before: str,
    known: Constraint | None,
    constraint: Constraint | None,
    gate_before: dict[str, Any],
) -> str | None:
    if deployment.model_id != model_before:
        return "promoted"
    if known != constraint:
        return "constraint_changed"
    if deployment.gate.get("override") != gate_before.get("override"):
        return "overridden"
    return None


def _plain(constraint: Constraint | None) -> dict[str, Any] | None:
    return None if constraint is None else constraint.model_dump(mode="json")
