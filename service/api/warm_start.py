"""What a restarted service loads before it says that it is ready: the models of its deployments."""

import logging
import threading

from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from models import ModelsError
from service.database.tables import Deployment
from service.serving.inference import InferenceEngine

logger = logging.getLogger(__name__)


class WarmStart:
    """Loads deployed models in a thread, so that a line's first frame meets its deadline.

    A model that can't be loaded is logged and keeps nobody waiting: its frames are answered with
    the reason, those of the others with their verdicts.

    Args:
        sessions: Of the database.
        inference: Keeps the models.
    """

    def __init__(self, sessions: sessionmaker[Session], inference: InferenceEngine) -> None:
        self._sessions = sessions
        self._inference = inference
        self._stop = threading.Event()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._load, name="warm-start", daemon=True)

    @property
    def is_done(self) -> bool:
        """Whether every deployed model is loaded, or was found not to load."""
        return self._done.is_set()

    def start(self) -> None:
        """Begin; the database must be migrated."""
        self._thread.start()

    def close(self) -> None:
        """Finish the model under way and leave the others."""
        self._stop.set()
        self._thread.join()

    def _load(self) -> None:
        try:
            for model_id in self._deployed():
                if self._stop.is_set():
                    return
                try:
                    self._inference.warm(model_id)
                except ModelsError as error:
                    logger.error("%s can't be loaded: %s", model_id, error.detail)  # noqa: TRY400 - the service runs on.
        finally:
            self._done.set()

    def _deployed(self) -> list[str]:
        """Return the models that are served, those deployed last first, as many as are kept."""
        newest_first = select(Deployment.model_id).order_by(Deployment.updated_at.desc())
        with self._sessions() as session:
            served = dict.fromkeys(session.scalars(newest_first))
        return list(served)[: self._inference.capacity]
