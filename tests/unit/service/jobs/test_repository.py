"""Jobs change only along the table of states, and one at a time holds each."""

from datetime import timedelta
from itertools import product

import pytest
from sqlalchemy import Engine, insert

from service.database.engine import session_factory
from service.database.tables import Job, now_utc
from service.errors import Conflict, InvalidRequest, NotFound
from service.jobs import repository
from service.jobs.states import ACTIVE, RESUMABLE, TERMINAL, TRANSITIONS, JobStatus

WORKER, OTHER = "wrk_one", "wrk_other"


def add_job(engine: Engine, job_id: str, version_id: str, **columns: object) -> str:
    values = {
        "id": job_id,
        "version_id": version_id,
        "status": JobStatus.QUEUED,
        "spec": {},
        **columns,
    }
    with session_factory(engine).begin() as session:
        session.execute(insert(Job).values(values))
    return job_id


def read_job(engine: Engine, job_id: str) -> Job:
    with session_factory(engine, writes=False)() as session:
        return repository.get(session, job_id)


def test_a_job_needs_a_version_that_exists(engine: Engine) -> None:
    with session_factory(engine)() as session, pytest.raises(InvalidRequest) as refused:
        repository.create(session, "ver_unknown", {})
    assert refused.value.where == "/version"


def test_two_workers_never_hold_the_same_job(engine: Engine, version_id: str) -> None:
    add_job(engine, "job_a", version_id)
    with session_factory(engine).begin() as session:
        first = repository.claim(session, WORKER, 15.0)
    with session_factory(engine).begin() as session:
        second = repository.claim(session, OTHER, 15.0)
    assert first is not None
    assert (first.status, first.owner) == (JobStatus.PREPARING, WORKER)
    assert second is None


def test_the_job_that_waited_longest_is_claimed_first(engine: Engine, version_id: str) -> None:
    add_job(engine, "job_young", version_id, created_at=now_utc())
    add_job(engine, "job_old", version_id, created_at=now_utc() - timedelta(hours=1))
    with session_factory(engine).begin() as session:
        job = repository.claim(session, WORKER, 15.0)
    assert job is not None
    assert job.id == "job_old"


def test_a_worker_moves_its_jobs_along_the_table_and_no_other_way(
    engine: Engine, version_id: str
) -> None:
    for number, (status, target) in enumerate(product(JobStatus, JobStatus)):
        job_id = add_job(engine, f"job_{number}", version_id, status=status, owner=WORKER)
        with session_factory(engine).begin() as session:
            moved = repository.advance(session, job_id, WORKER, target)
        allowed = target in TRANSITIONS[status]
        assert moved is allowed, f"{status} to {target}"
        assert read_job(engine, job_id).status == (target if allowed else status)


def test_a_worker_cannot_move_the_job_of_another(engine: Engine, version_id: str) -> None:
    add_job(engine, "job_a", version_id, status=JobStatus.RUNNING, owner=OTHER)
    with session_factory(engine).begin() as session:
        assert not repository.advance(session, "job_a", WORKER, JobStatus.SUCCEEDED)
        assert not repository.record(session, "job_a", WORKER, {"progress": {"step": 1}})
    job = read_job(engine, "job_a")
    assert (job.status, job.progress) == (JobStatus.RUNNING, {})


def test_an_ended_job_has_no_owner_and_a_time_of_its_end(engine: Engine, version_id: str) -> None:
    add_job(engine, "job_a", version_id, status=JobStatus.RUNNING, owner=WORKER)
    with session_factory(engine).begin() as session:
        repository.advance(session, "job_a", WORKER, JobStatus.FAILED)
    job = read_job(engine, "job_a")
    assert job.owner is None
    assert job.finished_at is not None


@pytest.mark.parametrize(
    ("owner", "lease_age_s", "dead", "taken"),
    [
        (OTHER, -10, set(), False),
        (OTHER, -10, {OTHER}, True),
        (OTHER, 10, set(), True),
        (None, 10, set(), True),
        (WORKER, 10, set(), False),
    ],
    ids=["alive", "known dead", "lease ran out", "nobody's", "its own"],
)
def test_a_worker_takes_over_what_nobody_looks_after(
    engine: Engine,
    version_id: str,
    owner: str | None,
    lease_age_s: float,
    dead: set[str],
    taken: bool,
) -> None:
    lease = now_utc() - timedelta(seconds=lease_age_s)
    add_job(engine, "job_a", version_id, status=JobStatus.RUNNING, owner=owner, lease_until=lease)
    with session_factory(engine).begin() as session:
        jobs = repository.take_over(session, WORKER, 15.0, dead)
    assert [job.id for job in jobs] == (["job_a"] if taken else [])


def test_renewing_tells_a_worker_which_jobs_are_still_its_own(
    engine: Engine, version_id: str
) -> None:
    add_job(engine, "job_mine", version_id, status=JobStatus.RUNNING, owner=WORKER)
    add_job(engine, "job_lost", version_id, status=JobStatus.RUNNING, owner=OTHER)
    with session_factory(engine).begin() as session:
        assert repository.renew_leases(session, WORKER, 15.0) == {"job_mine"}


@pytest.mark.parametrize("status", [JobStatus.QUEUED, JobStatus.INTERRUPTED])
def test_a_waiting_job_is_cancelled_at_once(
    engine: Engine, version_id: str, status: JobStatus
) -> None:
    add_job(engine, "job_a", version_id, status=status)
    with session_factory(engine).begin() as session:
        assert repository.request_cancel(session, "job_a").status == JobStatus.CANCELLED
    assert read_job(engine, "job_a").finished_at is not None


@pytest.mark.parametrize("status", sorted(ACTIVE))
def test_an_active_job_is_asked_to_stop(engine: Engine, version_id: str, status: JobStatus) -> None:
    add_job(engine, "job_a", version_id, status=status, owner=WORKER)
    with session_factory(engine).begin() as session:
        job = repository.request_cancel(session, "job_a")
    assert (job.status, job.cancel_requested) == (status, True)


@pytest.mark.parametrize("status", sorted(TERMINAL))
def test_an_ended_job_cannot_be_cancelled(
    engine: Engine, version_id: str, status: JobStatus
) -> None:
    add_job(engine, "job_a", version_id, status=status)
    with session_factory(engine).begin() as session, pytest.raises(Conflict):
        repository.request_cancel(session, "job_a")
    assert not read_job(engine, "job_a").cancel_requested


@pytest.mark.parametrize("status", sorted(JobStatus))
def test_resuming_queues_what_stopped_early_and_refuses_the_rest(
    engine: Engine, version_id: str, status: JobStatus
) -> None:
    add_job(
        engine,
        "job_a",
        version_id,
        status=status,
        cancel_requested=True,
        fruitless_attempts=3,
        error={"code": "x", "detail": "y"},
    )
    with session_factory(engine).begin() as session:
        if status not in RESUMABLE:
            with pytest.raises(Conflict):
                repository.request_resume(session, "job_a")
            return
        repository.request_resume(session, "job_a")
    job = read_job(engine, "job_a")
    assert (job.status, job.cancel_requested) == (JobStatus.QUEUED, False)
    assert (job.fruitless_attempts, job.error) == (0, None)


def test_an_interrupted_job_goes_back_into_the_queue_unless_it_is_to_stop(
    engine: Engine, version_id: str
) -> None:
    add_job(engine, "job_a", version_id, status=JobStatus.INTERRUPTED)
    add_job(engine, "job_b", version_id, status=JobStatus.INTERRUPTED, cancel_requested=True)
    with session_factory(engine).begin() as session:
        repository.requeue_interrupted(session)
    assert read_job(engine, "job_a").status == JobStatus.QUEUED
    assert read_job(engine, "job_b").status == JobStatus.CANCELLED


@pytest.mark.parametrize("action", [repository.request_cancel, repository.request_resume])
def test_an_unknown_job_is_not_found(engine: Engine, action: object) -> None:
    assert callable(action)
    with session_factory(engine).begin() as session, pytest.raises(NotFound):
        action(session, "job_nowhere")
