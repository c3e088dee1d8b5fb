"""The worker: claims jobs, starts or adopts their programs, follows them, keeps their rows.

It decides by two things only: the events a run writes and the lock its program holds.  It may die
at any instant; the next worker takes its jobs over and finds the programs still at work.
"""

import logging
import threading
import time
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Engine, select

from models.errors import ModelsError
from service import model_registry
from service.database.engine import session_factory
from service.database.tables import Job, Version
from service.errors import StorageError
from service.ids import new_id
from service.jobs import repository
from service.jobs.run_directory import read_log_tail, request_yield, start_attempt, write_config
from service.jobs.spec import JobSpec, run_config
from service.jobs.states import JobStatus
from service.settings import Settings
from service.storage import Storage
from service.worker import presence
from service.worker.engine_runner import EngineRunner
from service.worker.followed_run import FollowedRun
from service.worker.import_runner import ImportRunner
from service.worker.run_process import TRAINING_COMMAND, RunProcess

logger = logging.getLogger(__name__)

# A run writes a heartbeat every few seconds and stops at its next step: one that has said nothing
# for this long after it was asked to stop, or has not left after its last word, hangs.
STOP_GRACE_S = 60.0
_LOG_TAIL_BYTES = 2000


class Worker:
    """One worker of one machine; it trains one job at a time.

    Args:
        settings: The installation's.
        engine: Its database, migrated.
        storage: Its files.
        training_command: The program that is started with a run directory as its last argument.
    """

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        storage: Storage,
        training_command: Sequence[str] = TRAINING_COMMAND,
    ) -> None:
        self.id = new_id("wrk")
        self._settings = settings
        self._storage = storage
        self._command = training_command
        self._reads = session_factory(engine, writes=False)
        self._writes = session_factory(engine)
        self._presence = presence.Presence(storage.root, self.id)
        self._imports = ImportRunner(settings, engine, storage, self.id)
        self._engines = EngineRunner(settings, engine, storage, self.id)
        self._runs: dict[str, FollowedRun] = {}
        self._renew_at = 0.0

    def run(self, stop: threading.Event) -> None:
        """Work until ``stop`` is set; training programs go on without the worker."""
        logger.info("worker %s begins", self.id)
        while not stop.is_set():
            self.tick()
            stop.wait(self._settings.worker_poll_s)
        self.close()

    def close(self) -> None:
        """Leave: the next worker takes the jobs over at once."""
        self._engines.close()
        self._presence.release()
        logger.info("worker %s ends; %d runs go on without it", self.id, len(self._runs))

    def tick(self) -> None:
        """Do what is due now: leases, abandoned jobs, runs, the queue."""
        dead = presence.dead_workers(self._storage.root)
        lease_due = time.monotonic() >= self._renew_at
        if lease_due:
            self._renew()
        if lease_due or dead:
            self._take_over(dead)
        for run in list(self._runs.values()):
            self._follow(run)
        claimed = None
        with self._writes.begin() as session:
            requeued = repository.requeue_interrupted(session)
            if not self._runs:
                claimed = repository.claim(session, self.id, self._settings.lease_s)
        for job_id in requeued:
            logger.info("%s: back in the queue", job_id)
        if claimed is not None:
            self._start(claimed)
        self._imports.tick()
        self._engines.tick()

    def _renew(self) -> None:
        lease_s = self._settings.lease_s
        self._presence.renew()
        with self._writes.begin() as session:
            own = repository.renew_leases(session, self.id, lease_s)
        for job_id in self._runs.keys() - own:
            logger.warning("%s: another worker has taken it over", job_id)
            del self._runs[job_id]
        self._imports.renew_lease()
        self._engines.renew_lease()
        self._renew_at = time.monotonic() + lease_s / 3

    def _take_over(self, dead: set[str]) -> None:
        with self._writes.begin() as session:
            jobs = repository.take_over(session, self.id, self._settings.lease_s, dead)
        self._imports.take_over(dead)
        self._engines.take_over(dead)
        presence.forget(self._storage.root, dead)
        for job in jobs:
            run_dir = self._storage.run_dir(job.id)
            process = RunProcess.adopt(run_dir)
            logger.info("%s: taken over, %s", job.id, "alive" if process else "its program is gone")
            self._runs[job.id] = FollowedRun(job.id, run_dir, process)

    def _start(self, job: Job) -> None:
        """Start the training program of a job just claimed."""
        run_dir = self._storage.run_dir(job.id)
        with self._reads() as session:
            version = session.get_one(Version, job.version_id)
        config = run_config(
            JobSpec.model_validate(job.spec),
            manifest=self._storage.manifest_path(version.digest),
            root=self._storage.root,
            device=self._settings.device,
            weights_dir=self._settings.resolved_weights_dir,
        )
        write_config(run_dir, config)
        process = RunProcess.adopt(run_dir)
        if process is None:
            before = FollowedRun(job.id, run_dir, None)
            before.look()
            start_attempt(run_dir, after_seq=before.view.last_seq)
            longest_pause_s = self._settings.training_longest_pause_s
            request_yield(run_dir, self._storage.serving_mark, longest_pause_s)
            process = RunProcess.start(run_dir, self._command)
            with self._writes.begin() as session:
                repository.record(session, job.id, self.id, {"attempts": Job.attempts + 1})
        self._runs[job.id] = FollowedRun(job.id, run_dir, process)

    def _follow(self, run: FollowedRun) -> None:
        seen = run.view.last_seq
        alive = run.look()
        with self._reads() as session:
            job = session.scalars(
                select(Job).where(Job.id == run.job_id, Job.owner == self.id)
            ).one_or_none()
        if job is None:
            del self._runs[run.job_id]
            return
        if run.view.last_seq != seen:
            self._record(run)
        if job.cancel_requested:
            run.ask_to_stop()
        if not alive:
            del self._runs[run.job_id]
            self._conclude(job, run)
        elif self._hangs(job, run):
            logger.warning("%s: silent for %.0f s, killed", run.job_id, run.silent_for_s())
            run.kill()

    @staticmethod
    def _hangs(job: Job, run: FollowedRun) -> bool:
        ending = job.cancel_requested or run.terminal is not None
        return ending and run.silent_for_s() > STOP_GRACE_S

    def _record(self, run: FollowedRun) -> None:
        with self._writes.begin() as session:
            repository.record(session, run.job_id, self.id, run.row_values())
            if run.stage is not None:
                repository.advance(session, run.job_id, self.id, run.stage)

    def _conclude(self, job: Job, run: FollowedRun) -> None:
        """Bring the row of a run whose program has ended to its next state."""
        event = run.terminal
        if event is None:
            self._conclude_death(job, run)
        elif event.kind == "finished" and event.data.get("bundle") is None:
            # It was asked for an estimate alone.
            self._advance(job, JobStatus.SUCCEEDED, {"error": None})
        elif event.kind == "finished":
            self._conclude_success(job, run)
        elif event.kind == "cancelled":
            self._advance(job, JobStatus.CANCELLED)
        else:
            error = {name: event.data.get(name) for name in ("code", "detail", "hint")}
            self._advance(job, JobStatus.FAILED, {"error": error})

    def _conclude_success(self, job: Job, run: FollowedRun) -> None:
        try:
            model_id = model_registry.publish_bundle(self._storage, job.id, run.run_dir)
            report = model_registry.read_report(run.run_dir)
        except (ModelsError, StorageError) as error:
            problem = {"code": error.code, "detail": error.detail, "hint": error.hint}
            self._advance(job, JobStatus.FAILED, {"error": problem})
            return
        values = {"model_id": model_id, "error": None}
        with self._writes.begin() as session:
            if repository.advance(session, job.id, self.id, JobStatus.SUCCEEDED, values):
                model_registry.add(session, model_id, job.id, job.version_id, report)
        logger.info("%s: succeeded with %s", job.id, model_id)

    def _conclude_death(self, job: Job, run: FollowedRun) -> None:
        if job.cancel_requested:
            self._advance(job, JobStatus.CANCELLED)
            return
        fruitless = 0 if run.reached_checkpoint else job.fruitless_attempts + 1
        values: dict[str, Any] = {"fruitless_attempts": fruitless}
        if fruitless < self._settings.max_fruitless_attempts:
            self._advance(job, JobStatus.INTERRUPTED, values)
            return
        tail = read_log_tail(run.run_dir, max_bytes=_LOG_TAIL_BYTES).strip()
        values["error"] = {
            "code": "run_keeps_dying",
            "detail": f"The training program died {fruitless} times in a row before its next "
            f"checkpoint; the last time it {run.describe_exit()}. "
            + (f"The end of its log:\n{tail}" if tail else "Its log is empty."),
            "hint": "If memory ran out, train on crops or with a smaller batch in a new job; "
            f"otherwise remove the cause and POST /jobs/{job.id}:resume.",
        }
        self._advance(job, JobStatus.FAILED, values)

    def _advance(self, job: Job, target: JobStatus, values: dict[str, Any] | None = None) -> None:
        with self._writes.begin() as session:
            moved = repository.advance(session, job.id, self.id, target, values)
        logger.info("%s: %s%s", job.id, target, "" if moved else " refused: not ours any more")
