"""A worker brings every job to an end that its run deserves, whoever dies on the way."""

import os
import signal
import time
from collections.abc import Callable

import pytest
from sqlalchemy import Engine

from models import load_bundle
from service.database.engine import session_factory
from service.database.tables import Job, Model
from service.jobs import repository
from service.jobs.spec import JobSpec
from service.jobs.states import JobStatus
from service.storage import Storage
from service.worker.worker import Worker
from training.run_directory import RunDirectory
from training.yielding import read_yielding

MakeWorker = Callable[..., Worker]
PATIENCE_S = 30.0


class Jobs:
    """The rows, as a test looks at them."""

    def __init__(self, engine: Engine, storage: Storage, version_id: str) -> None:
        self.engine, self.storage, self.version_id = engine, storage, version_id

    def create(self) -> str:
        spec = JobSpec(version=self.version_id).model_dump(mode="json")
        with session_factory(self.engine).begin() as session:
            return repository.create(session, self.version_id, spec).id

    def get(self, job_id: str) -> Job:
        with session_factory(self.engine, writes=False)() as session:
            return repository.get(session, job_id)

    def cancel(self, job_id: str) -> None:
        with session_factory(self.engine).begin() as session:
            repository.request_cancel(session, job_id)

    def resume(self, job_id: str) -> None:
        with session_factory(self.engine).begin() as session:
            repository.request_resume(session, job_id)

    def pid(self, job_id: str) -> int:
        return int((self.storage.run_dir(job_id) / "pid").read_text())

    def starts(self, job_id: str) -> int:
        events = (self.storage.run_dir(job_id) / "events.jsonl").read_text()
        return events.count('"started"')


@pytest.fixture
def jobs(engine: Engine, storage: Storage, version_id: str) -> Jobs:
    return Jobs(engine, storage, version_id)


def work_until(worker: Worker, condition: Callable[[], bool]) -> None:
    """Let the worker do what is due until the condition holds."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "the worker never got there"
        worker.tick()
        time.sleep(0.02)


def reach(worker: Worker, jobs: Jobs, job_id: str, status: JobStatus) -> Job:
    work_until(worker, lambda: jobs.get(job_id).status == status)
    return jobs.get(job_id)


def test_a_finished_run_becomes_a_model_that_loads(
    jobs: Jobs, storage: Storage, engine: Engine, new_worker: MakeWorker
) -> None:
    job_id = jobs.create()
    job = reach(new_worker("finish"), jobs, job_id, JobStatus.SUCCEEDED)
    assert job.model_id is not None
    assert job.progress["fraction"] == 0.1
    assert job.metrics["values"] == {"loss": 0.5}
    assert job.attempts == 1
    with session_factory(engine, writes=False)() as session:
        model = session.get_one(Model, job.model_id)
    assert model.report == {"metrics": {"dice": 0.5}}
    assert load_bundle(storage.bundle_dir(job.model_id)).info.classes == ("pit", "scratch")


def test_a_run_that_finished_without_a_bundle_fails_its_job(
    jobs: Jobs, new_worker: MakeWorker
) -> None:
    job = reach(new_worker("empty"), jobs, jobs.create(), JobStatus.FAILED)
    assert job.error is not None
    assert job.error["code"] == "bundle_incomplete"
    assert job.model_id is None


def test_a_dry_run_succeeds_without_a_model(jobs: Jobs, new_worker: MakeWorker) -> None:
    job = reach(new_worker("estimate"), jobs, jobs.create(), JobStatus.SUCCEEDED)
    assert job.model_id is None
    assert job.error is None


def test_a_run_that_stepped_down_to_less_memory_before_it_died_is_started_again(
    jobs: Jobs, new_worker: MakeWorker
) -> None:
    worker, job_id = new_worker("die", "shrink", "die", "shrink", "die", "finish"), jobs.create()
    assert reach(worker, jobs, job_id, JobStatus.SUCCEEDED).attempts == 6


def test_a_failed_run_tells_its_reason_in_the_job(jobs: Jobs, new_worker: MakeWorker) -> None:
    job = reach(new_worker("fail"), jobs, jobs.create(), JobStatus.FAILED)
    assert job.error == {
        "code": "out_of_memory",
        "detail": "the device has no memory",
        "hint": "use crops",
    }


def test_a_running_job_that_is_cancelled_stops_its_program(
    jobs: Jobs, new_worker: MakeWorker
) -> None:
    worker, job_id = new_worker("wait"), jobs.create()
    reach(worker, jobs, job_id, JobStatus.RUNNING)
    jobs.cancel(job_id)
    reach(worker, jobs, job_id, JobStatus.CANCELLED)
    with pytest.raises(ProcessLookupError):
        os.kill(jobs.pid(job_id), 0)


def test_a_cancelled_job_that_is_resumed_runs_again_in_the_same_directory(
    jobs: Jobs, new_worker: MakeWorker
) -> None:
    worker, job_id = new_worker("wait", "finish"), jobs.create()
    reach(worker, jobs, job_id, JobStatus.RUNNING)
    jobs.cancel(job_id)
    reach(worker, jobs, job_id, JobStatus.CANCELLED)
    jobs.resume(job_id)
    job = reach(worker, jobs, job_id, JobStatus.SUCCEEDED)
    assert (job.attempts, jobs.starts(job_id)) == (2, 2)


def test_a_resumed_job_that_dies_before_its_first_word_is_not_taken_for_cancelled(
    jobs: Jobs, storage: Storage, new_worker: MakeWorker
) -> None:
    worker, job_id = new_worker("wait"), jobs.create()
    reach(worker, jobs, job_id, JobStatus.RUNNING)
    jobs.cancel(job_id)
    reach(worker, jobs, job_id, JobStatus.CANCELLED)
    worker.close()
    jobs.resume(job_id)
    mute = Worker(worker._settings, jobs.engine, storage, ["/bin/false"])
    job = reach(mute, jobs, job_id, JobStatus.FAILED)
    assert job.error is not None
    assert job.error["code"] == "run_keeps_dying"
    assert "exit code 1" in job.error["detail"]


def test_a_killed_program_is_started_again_and_finishes(jobs: Jobs, new_worker: MakeWorker) -> None:
    worker, job_id = new_worker("wait", "finish"), jobs.create()
    reach(worker, jobs, job_id, JobStatus.RUNNING)
    os.kill(jobs.pid(job_id), signal.SIGKILL)
    job = reach(worker, jobs, job_id, JobStatus.SUCCEEDED)
    assert job.attempts == 2


def test_a_program_that_keeps_dying_fails_its_job_with_the_end_of_its_log(
    jobs: Jobs, new_worker: MakeWorker
) -> None:
    job = reach(new_worker("die"), jobs, jobs.create(), JobStatus.FAILED)
    assert job.attempts == 3
    assert job.error is not None
    assert "died 3 times in a row" in job.error["detail"]
    assert "SIGKILL" in job.error["detail"]
    assert "attempt 2 begins" in job.error["detail"]


def test_deaths_after_a_new_checkpoint_do_not_count(jobs: Jobs, new_worker: MakeWorker) -> None:
    worker, job_id = new_worker("die", "save", "die", "save", "die", "finish"), jobs.create()
    job = reach(worker, jobs, job_id, JobStatus.SUCCEEDED)
    assert job.attempts == 6


def test_a_job_to_be_cancelled_whose_program_died_is_cancelled_not_restarted(
    jobs: Jobs, new_worker: MakeWorker
) -> None:
    worker, job_id = new_worker("wait"), jobs.create()
    reach(worker, jobs, job_id, JobStatus.RUNNING)
    os.kill(jobs.pid(job_id), signal.SIGKILL)
    jobs.cancel(job_id)
    assert reach(worker, jobs, job_id, JobStatus.CANCELLED).attempts == 1


def test_a_new_worker_adopts_a_living_program_instead_of_starting_a_second(
    jobs: Jobs, new_worker: MakeWorker
) -> None:
    first, job_id = new_worker("wait"), jobs.create()
    reach(first, jobs, job_id, JobStatus.RUNNING)
    pid = jobs.pid(job_id)
    first.close()
    second = new_worker("finish")
    work_until(second, lambda: jobs.get(job_id).owner == second.id)
    for _ in range(10):
        second.tick()
    assert (jobs.pid(job_id), jobs.starts(job_id)) == (pid, 1)
    jobs.cancel(job_id)
    assert reach(second, jobs, job_id, JobStatus.CANCELLED).attempts == 1


def test_a_run_that_finished_while_no_worker_lived_becomes_a_model(
    jobs: Jobs, storage: Storage, new_worker: MakeWorker
) -> None:
    first, job_id = new_worker("finish"), jobs.create()
    first.tick()
    first.close()
    events = storage.run_dir(job_id) / "events.jsonl"
    deadline = time.monotonic() + PATIENCE_S
    while not (events.exists() and '"finished"' in events.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    job = reach(new_worker("die"), jobs, job_id, JobStatus.SUCCEEDED)
    assert jobs.starts(job_id) == 1
    assert job.model_id is not None


def test_training_is_asked_to_make_way_for_serving_unless_that_is_switched_off(
    jobs: Jobs, new_worker: MakeWorker, storage: Storage
) -> None:
    worker, job_id = new_worker("wait", "finish"), jobs.create()
    reach(worker, jobs, job_id, JobStatus.RUNNING)
    request = RunDirectory(storage.run_dir(job_id)).yield_request
    asked = read_yielding(request)
    assert asked.mark == storage.serving_mark
    assert asked.longest_pause_s == worker._settings.training_longest_pause_s > 0

    os.kill(jobs.pid(job_id), signal.SIGKILL)
    worker._settings = worker._settings.model_copy(update={"training_longest_pause_s": 0.0})
    reach(worker, jobs, job_id, JobStatus.SUCCEEDED)
    assert not request.exists()


def test_a_worker_trains_one_job_at_a_time(jobs: Jobs, new_worker: MakeWorker) -> None:
    worker, first, second = new_worker("wait"), jobs.create(), jobs.create()
    reach(worker, jobs, first, JobStatus.RUNNING)
    for _ in range(5):
        worker.tick()
    assert jobs.get(second).status == JobStatus.QUEUED
    jobs.cancel(first)
    reach(worker, jobs, second, JobStatus.RUNNING)


def test_a_run_keeps_the_configuration_it_began_with(
    jobs: Jobs, storage: Storage, new_worker: MakeWorker
) -> None:
    worker, job_id = new_worker("wait", "finish"), jobs.create()
    reach(worker, jobs, job_id, JobStatus.RUNNING)
    config = storage.run_dir(job_id) / "config.json"
    before = config.read_bytes()
    os.kill(jobs.pid(job_id), signal.SIGKILL)
    reach(worker, jobs, job_id, JobStatus.SUCCEEDED)
    assert config.read_bytes() == before
