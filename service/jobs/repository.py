"""Rows of jobs; each change of state is one guarded ``UPDATE … WHERE status IN … RETURNING``."""

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Select, case, or_, select, update
from sqlalchemy.orm import Session

from service.database.tables import Job, Version, now_utc
from service.errors import Conflict, InvalidRequest, NotFound
from service.ids import new_id
from service.jobs.states import ACTIVE, RESUMABLE, TERMINAL, JobStatus, sources


def create(
    session: Session, version_id: str, spec: dict[str, Any], *, job_id: str | None = None
) -> Job:
    """Add a queued job on a data-set version.

    Args:
        session: A writing session.
        version_id: The version.
        spec: A `JobSpec` as JSON.
        job_id: None makes a new one.

    Raises:
        InvalidRequest: There is no such version.
    """
    if session.get(Version, version_id) is None:
        raise InvalidRequest(
            "unknown_version",
            f"there is no data-set version {version_id}",
            where="/version",
            hint="freeze one with POST /datasets/{id}/versions and use its id",
        )
    job = Job(id=job_id or new_id("job"), version_id=version_id, status=JobStatus.QUEUED, spec=spec)
    session.add(job)
    session.flush()
    return job


def get(session: Session, job_id: str) -> Job:
    """Return a job.

    Raises:
        NotFound: There is no such job.
    """
    job = session.get(Job, job_id)
    if job is None:
        raise NotFound("job_not_found", f"there is no job {job_id}", hint="GET /jobs lists them")
    return job


def jobs_in(status: JobStatus | None) -> Select[Job]:
    """Select the jobs in one state, or all for None, in no order."""
    return select(Job) if status is None else select(Job).where(Job.status == status)


def claim(session: Session, worker_id: str, lease_s: float) -> Job | None:
    """Take the oldest queued job for a worker, or return None when nothing is queued."""
    oldest = (
        select(Job.id)
        .where(Job.status == JobStatus.QUEUED)
        .order_by(Job.created_at, Job.id)
        .limit(1)
        .scalar_subquery()
    )
    return session.scalars(
        update(Job)
        .where(Job.id == oldest, Job.status == JobStatus.QUEUED)
        .values(
            status=JobStatus.PREPARING,
            owner=worker_id,
            lease_until=now_utc() + timedelta(seconds=lease_s),
            started_at=case((Job.started_at.is_(None), now_utc()), else_=Job.started_at),
        )
        .returning(Job)
    ).one_or_none()


def renew_leases(session: Session, worker_id: str, lease_s: float) -> set[str]:
    """Prolong a worker's leases and return the jobs that are still its own."""
    return set(
        session.scalars(
            update(Job)
            .where(Job.owner == worker_id, Job.status.in_(ACTIVE))
            .values(lease_until=now_utc() + timedelta(seconds=lease_s))
            .returning(Job.id)
        )
    )


def take_over(
    session: Session, worker_id: str, lease_s: float, dead_workers: Collection[str]
) -> list[Job]:
    """Give a worker the active jobs of dead workers and those whose lease expired."""
    now = now_utc()
    return list(
        session.scalars(
            update(Job)
            .where(Job.status.in_(ACTIVE), abandoned(Job.owner, Job.lease_until, dead_workers, now))
            .where(or_(Job.owner.is_(None), Job.owner != worker_id))
            .values(owner=worker_id, lease_until=now + timedelta(seconds=lease_s))
            .returning(Job)
        )
    )


def abandoned(
    owner: Any,
    lease_until: Any,
    dead_workers: Collection[str],
    now: datetime,
) -> ColumnElement[bool]:
    """Return the condition that nobody looks after a row any more."""
    return or_(owner.is_(None), owner.in_(dead_workers), lease_until.is_(None), lease_until < now)


def record(session: Session, job_id: str, worker_id: str, values: dict[str, Any]) -> bool:
    """Store what a run said of itself; return False when the job is no longer the worker's."""
    stored = session.scalars(
        update(Job)
        .where(Job.id == job_id, Job.owner == worker_id, Job.status.in_(ACTIVE))
        .values(values)
        .returning(Job.id)
    ).one_or_none()
    return stored is not None


def advance(
    session: Session,
    job_id: str,
    worker_id: str,
    target: JobStatus,
    values: dict[str, Any] | None = None,
) -> bool:
    """Move a worker's own job to ``target``; return False when the table of states forbids it."""
    changes: dict[str, Any] = {"status": target, **(values or {})}
    if target not in ACTIVE:
        changes |= {"owner": None, "lease_until": None}
    if target in TERMINAL:
        changes["finished_at"] = now_utc()
    moved = session.scalars(
        update(Job)
        .where(Job.id == job_id, Job.owner == worker_id, Job.status.in_(sources(target)))
        .values(changes)
        .returning(Job.id)
    ).one_or_none()
    return moved is not None


def requeue_interrupted(session: Session) -> list[str]:
    """Put every interrupted job back into the queue and return their ids.

    One whose cancellation was asked for while its program died is cancelled instead.
    """
    return list(
        session.scalars(
            update(Job)
            .where(Job.status == JobStatus.INTERRUPTED)
            .values(
                status=case((Job.cancel_requested, JobStatus.CANCELLED), else_=JobStatus.QUEUED),
                finished_at=case((Job.cancel_requested, now_utc()), else_=Job.finished_at),
            )
            .returning(Job.id)
        )
    )


def request_cancel(session: Session, job_id: str) -> Job:
    """Cancel a waiting job at once, and ask an active one to stop at its next step.

    Raises:
        NotFound: There is no such job.
        Conflict: The job has ended already.
    """
    waiting = Job.status.in_((JobStatus.QUEUED, JobStatus.INTERRUPTED))
    job = session.scalars(
        update(Job)
        .where(Job.id == job_id, Job.status.not_in(TERMINAL))
        .values(
            cancel_requested=True,
            status=case((waiting, JobStatus.CANCELLED), else_=Job.status),
            finished_at=case((waiting, now_utc()), else_=Job.finished_at),
        )
        .returning(Job)
    ).one_or_none()
    if job is not None:
        return job
    status = get(session, job_id).status
    raise Conflict("job_ended", f"job {job_id} has {status} already and cannot be cancelled")


def request_resume(session: Session, job_id: str) -> Job:
    """Queue a failed, cancelled or interrupted job again; it goes on from its last checkpoint.

    Raises:
        NotFound: There is no such job.
        Conflict: The job is waiting, running or has succeeded.
    """
    job = session.scalars(
        update(Job)
        .where(Job.id == job_id, Job.status.in_(RESUMABLE))
        .values(
            status=JobStatus.QUEUED,
            cancel_requested=False,
            fruitless_attempts=0,
            error=None,
            finished_at=None,
        )
        .returning(Job)
    ).one_or_none()
    if job is not None:
        return job
    status = get(session, job_id).status
    raise Conflict(
        "job_not_resumable",
        f"job {job_id} is {status}; only a failed, cancelled or interrupted job can be resumed",
        hint="queue a new job with POST /jobs" if status == JobStatus.SUCCEEDED else None,
    )
