"""``/deployments/{name}/shadow``: a model beside the served one, and where they disagree."""

from fastapi import APIRouter
from pydantic import ConfigDict
from sqlalchemy import select
from sqlalchemy.orm import Session

from models.certificate import exact_interval
from service import model_registry
from service.api.dependencies import (
    FollowUpDependency,
    InferenceDependency,
    ReadSession,
    RecorderDependency,
    WriteSession,
)
from service.api.deployments import AuthoredRequest, Because, Name, User, named, told
from service.api.kept_frames import kept_resource
from service.api.paging import Cursor, Limit, Page, fetch_page
from service.database.tables import KeptFrame, ShadowCount, ShadowRun
from service.serving import deployments, shadow
from service.serving.deployment_resources import (
    DeploymentResource,
    KeptFrameResource,
    ShadowCountResource,
    ShadowResource,
    ShadowWish,
)
from service.serving.deployments import Author
from service.serving.follow_up import FollowUp

router = APIRouter(tags=["deployments"])

_PATH = "/deployments/{name}/shadow"


class ShadowRequest(ShadowWish, AuthoredRequest):
    """A model to run beside the served one."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"model": "mdl_4k7z1m9q2w8x5v3t", "sample_rate": 0.2}]},
    )


@router.get(_PATH)
def get_shadow(name: Name, session: ReadSession, follow_up: FollowUpDependency) -> ShadowResource:
    """Return the newest shadow run of a deployment, which may have ended, and how far it agrees."""
    deployments.get(session, name)
    return _resource(session, follow_up, shadow.latest(session, name))


@router.put(_PATH)
def put_shadow(
    name: Name,
    body: ShadowRequest,
    reading: ReadSession,
    writing: WriteSession,
    inference: InferenceDependency,
    recorder: RecorderDependency,
    user: User = None,
) -> DeploymentResource:
    """Let a model run beside the served one, on frames that come while the device is idle.

    Its answers go nowhere but into the comparison. A run that is under way ends.
    """
    model_registry.check_named(reading, body.model)
    inference.describe(body.model)
    deployment = deployments.get(writing, name)
    wish = ShadowWish.model_validate(body.model_dump(exclude={"by", "reason"}))
    run = shadow.begin(writing, deployment, wish)
    event = None
    if run is not None:
        event = deployments.record(
            writing, deployment, "shadow_on", body.author(user), details={"shadow": run.wish}
        )
    return told(writing, recorder, deployment, event)


@router.delete(_PATH)
def delete_shadow(
    name: Name,
    writing: WriteSession,
    recorder: RecorderDependency,
    user: User = None,
    reason: Because = None,
) -> DeploymentResource:
    """Take the shadow model away; what it found stays."""
    deployment = deployments.get(writing, name)
    run = shadow.end(writing, deployment)
    event = deployments.record(
        writing, deployment, "shadow_off", Author(named(user), reason), details={"shadow": run.wish}
    )
    return told(writing, recorder, deployment, event)


@router.get(_PATH + "/disagreements")
def list_disagreements(
    name: Name, session: ReadSession, limit: Limit = 50, cursor: Cursor = None
) -> Page[KeptFrameResource]:
    """List frames of the newest shadow run that were answered otherwise, newest first."""
    deployments.get(session, name)
    run = shadow.latest(session, name)
    rows, following = fetch_page(
        session,
        select(KeptFrame).where(
            KeptFrame.deployment == name,
            KeptFrame.cause == "disagreement",
            KeptFrame.shadow_run_id == run.id,
        ),
        order=(KeptFrame.id,),
        limit=limit,
        cursor=cursor,
        descending=True,
    )
    return Page(items=[kept_resource(row) for row in rows], next_cursor=following)


def _resource(session: Session, follow_up: FollowUp, run: ShadowRun) -> ShadowResource:
    wish = ShadowWish.model_validate(run.wish)
    return ShadowResource(
        model=run.model_id,
        sample_rate=wish.sample_rate,
        max_frames=wish.max_frames,
        max_bytes=wish.max_bytes,
        started_at=run.started_at,
        ended_at=run.ended_at,
        counts=tuple(_count(row) for row in shadow.counts_of(session, run.id)),
        disagreements=shadow.disagreements(session, run),
        last_error=follow_up.shadow.last_error(run.id),
    )


def _count(row: ShadowCount) -> ShadowCountResource:
    return ShadowCountResource(
        served_model=row.served_model_id,
        compared=row.compared,
        same_verdict=exact_interval(row.same_verdict, row.compared),
        agreed=exact_interval(row.agreed, row.compared),
        dropped=row.dropped,
        failed=row.failed,
    )
