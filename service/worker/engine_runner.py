"""Preparing engines under a worker: one model at a time, by a program beside the training jobs."""

import json
import logging
import os
import subprocess
import sys
import tempfile
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, select, update

from service.database.engine import session_factory
from service.database.tables import EngineTask, Model, Version, now_utc
from service.jobs.repository import abandoned
from service.serve import settings_environment
from service.settings import Settings
from service.storage import Storage

logger = logging.getLogger(__name__)


class EngineRunner:
    """Claims models whose engines are asked for, and runs the program that prepares them.

    A preparation leaves nothing until it is whole: one that its worker left half-done is run again.
    """

    def __init__(
        self, settings: Settings, engine: Engine, storage: Storage, worker_id: str
    ) -> None:
        self._settings = settings
        self._storage = storage
        self._worker_id = worker_id
        self._reads = session_factory(engine, writes=False)
        self._writes = session_factory(engine)
        self._model_id: str | None = None
        self._program: subprocess.Popen[bytes] | None = None
        self._outcome: Path | None = None

    def tick(self) -> None:
        """Begin the oldest preparation asked for, or conclude the one under way."""
        if self._program is not None:
            code = self._program.poll()
            if code is None:
                return
            self._conclude(code)
        self._model_id = self._claim()
        if self._model_id is not None:
            self._start(self._model_id)

    def close(self) -> None:
        """Give up the preparation under way: the next worker runs it again."""
        if self._program is not None:
            self._program.kill()
            self._program.wait()
            self._clear()

    def renew_lease(self) -> None:
        """Prolong the lease of the preparation under way."""
        with self._writes.begin() as session:
            session.execute(
                update(EngineTask)
                .where(EngineTask.owner == self._worker_id, EngineTask.status == "running")
                .values(lease_until=self._lease_until())
            )

    def take_over(self, dead_workers: set[str]) -> None:
        """Put preparations that nobody looks after back into the queue."""
        with self._writes.begin() as session:
            session.execute(
                update(EngineTask)
                .where(EngineTask.status == "running", EngineTask.owner != self._worker_id)
                .where(abandoned(EngineTask.owner, EngineTask.lease_until, dead_workers, now_utc()))
                .values(status="queued", owner=None, lease_until=None)
            )

    def _claim(self) -> str | None:
        oldest = (
            select(EngineTask.model_id)
            .where(EngineTask.status == "queued")
            .order_by(EngineTask.requested_at, EngineTask.model_id)
            .limit(1)
            .scalar_subquery()
        )
        with self._writes.begin() as session:
            return session.scalars(
                update(EngineTask)
                .where(EngineTask.model_id == oldest, EngineTask.status == "queued")
                .values(status="running", owner=self._worker_id, lease_until=self._lease_until())
                .returning(EngineTask.model_id)
            ).one_or_none()

    def _start(self, model_id: str) -> None:
        with self._reads() as session:
            version = session.get_one(Version, session.get_one(Model, model_id).version_id)
        descriptor, outcome = tempfile.mkstemp(dir=self._storage.spool_dir, suffix=".part")
        os.close(descriptor)
        self._outcome = Path(outcome)
        self._program = subprocess.Popen(  # noqa: S603 - our own program and ids of our own making.
            [
                sys.executable,
                "-m",
                "service.serving.engine_program",
                model_id,
                version.digest,
                outcome,
            ],
            # It leaves when this end closes.
            stdin=subprocess.PIPE,
            # NNCF draws bars there.
            stdout=subprocess.DEVNULL,
            env={**os.environ, **settings_environment(self._settings)},
        )
        logger.info("%s: its engines are prepared by process %d", model_id, self._program.pid)

    def _conclude(self, code: int) -> None:
        error = self._error(code)
        with self._writes.begin() as session:
            session.execute(
                update(EngineTask)
                .where(EngineTask.model_id == self._model_id)
                .where(EngineTask.owner == self._worker_id, EngineTask.status == "running")
                .values(
                    status="done" if error is None else "failed",
                    error=error,
                    owner=None,
                    lease_until=None,
                    finished_at=now_utc(),
                )
            )
        logger.info("%s: its engines are %s", self._model_id, error or "prepared")
        self._clear()

    def _error(self, code: int) -> dict[str, Any] | None:
        assert self._outcome is not None
        try:
            error = json.loads(self._outcome.read_bytes())
        except (OSError, ValueError):
            return {
                "code": "preparation_died",
                "detail": f"the program that prepares engines ended with {code}",
                "hint": "torch serves the model meanwhile; if memory ran out, ask again when the "
                f"machine is idle: POST /models/{self._model_id}/engines",
            }
        return error if isinstance(error, dict) else None

    def _clear(self) -> None:
        assert self._program is not None
        assert self._program.stdin is not None
        self._program.stdin.close()
        if self._outcome is not None:
            self._outcome.unlink(missing_ok=True)
        self._program, self._outcome, self._model_id = None, None, None

    def _lease_until(self) -> datetime:
        return now_utc() + timedelta(seconds=self._settings.lease_s)
