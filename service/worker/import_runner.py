"""Archive imports under a worker: one at a time, in a thread beside the training jobs."""

import logging
import threading
from datetime import datetime, timedelta

from sqlalchemy import Engine, select, update

from service.database.engine import session_factory
from service.database.tables import Import, now_utc
from service.datasets.imports import run_import
from service.jobs.repository import abandoned
from service.settings import Settings
from service.storage import Storage

logger = logging.getLogger(__name__)


class ImportRunner:
    """Claims queued imports and runs them.

    An import is idempotent: one that its worker left half-done is simply run again.
    """

    def __init__(
        self, settings: Settings, engine: Engine, storage: Storage, worker_id: str
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._storage = storage
        self._worker_id = worker_id
        self._writes = session_factory(engine)
        self._thread: threading.Thread | None = None

    def tick(self) -> None:
        """Begin the oldest queued import unless one is under way."""
        if self._thread is not None and self._thread.is_alive():
            return
        import_id = self._claim()
        if import_id is None:
            return
        # A daemon, because an import may take an hour and a worker that is asked to leave does not
        # wait for it: its successor runs it again.
        self._thread = threading.Thread(
            target=self._run, args=(import_id,), name=import_id, daemon=True
        )
        self._thread.start()

    def renew_lease(self) -> None:
        """Prolong the lease of the import under way."""
        with self._writes.begin() as session:
            session.execute(
                update(Import)
                .where(Import.owner == self._worker_id, Import.status == "running")
                .values(lease_until=self._lease_until())
            )

    def take_over(self, dead_workers: set[str]) -> None:
        """Put imports that nobody looks after back into the queue."""
        with self._writes.begin() as session:
            session.execute(
                update(Import)
                .where(Import.status == "running", Import.owner != self._worker_id)
                .where(abandoned(Import.owner, Import.lease_until, dead_workers, now_utc()))
                .values(status="queued", owner=None, lease_until=None)
            )

    def _claim(self) -> str | None:
        oldest = (
            select(Import.id)
            .where(Import.status == "queued")
            .order_by(Import.created_at, Import.id)
            .limit(1)
            .scalar_subquery()
        )
        with self._writes.begin() as session:
            return session.scalars(
                update(Import)
                .where(Import.id == oldest, Import.status == "queued")
                .values(status="running", owner=self._worker_id, lease_until=self._lease_until())
                .returning(Import.id)
            ).one_or_none()

    def _run(self, import_id: str) -> None:
        logger.info("%s: begins", import_id)
        try:
            run_import(self._engine, self._storage, self._settings, import_id)
        except Exception:
            # The edge of the thread: without this the import would stay "running" for ever.
            logger.exception("%s: failed", import_id)
            self._fail(import_id)
        else:
            logger.info("%s: ended", import_id)

    def _fail(self, import_id: str) -> None:
        error = {
            "code": "import_failed",
            "detail": "The service failed at this import; what it had accepted is kept.",
            "hint": f"Look for {import_id} in the service's log, then upload the archive again.",
        }
        with self._writes.begin() as session:
            session.execute(
                update(Import)
                .where(Import.id == import_id, Import.owner == self._worker_id)
                .values(status="failed", error=error, owner=None, lease_until=None)
            )

    def _lease_until(self) -> datetime:
        return now_utc() + timedelta(seconds=self._settings.lease_s)
