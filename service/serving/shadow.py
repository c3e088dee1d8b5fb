"""A model that runs beside a deployment: it sees frames of the line, and its answers go nowhere.

It never slows the line.  Frames wait for it in a queue of their own, of few places; those that find
none, or for which the device does not become free, are dropped and counted.  It runs in a process
that gives way to everything else (`service.serving.shadow_program`).
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from service.database.engine import session_factory
from service.database.tables import Deployment, KeptFrame, ShadowCount, ShadowRun, now_utc
from service.errors import Conflict, NotFound
from service.resources import Prediction
from service.serving.agreement import Agreement, compare
from service.serving.background_queue import BackgroundQueue
from service.serving.deployment_resources import ShadowWish
from service.serving.kept_frames import Bounds, Disagreement, KeptFrames
from service.serving.line_frames import Answered
from service.serving.shadow_process import ShadowFailed
from service.serving.uploaded_frame import UploadedFrame

logger = logging.getLogger(__name__)

Ask = Callable[[str, UploadedFrame], Mapping[str, Any]]

# A frame holds its bytes while it waits.
_WAITING_FRAMES = 4
# A line of two frames a second is idle every half second.
_PATIENCE_S = 2.0
_LOOK_AGAIN_S = 0.005
_SAMPLE_SPACE = 16**8


class ShadowComparison:
    """Asks shadow models about frames that the line has been answered on, and compares.

    Args:
        engine: Of the database, which counts.
        frames: Keep what the answers disagree on.
        ask: Returns what a model says of a frame; raises `ShadowFailed` if it says nothing.
        is_idle: Whether the device has nothing to do for the line.
    """

    def __init__(
        self, engine: Engine, frames: KeptFrames, ask: Ask, is_idle: Callable[[], bool]
    ) -> None:
        self._writes = session_factory(engine)
        self._frames = frames
        self._ask = ask
        self._is_idle = is_idle
        self._guard = threading.Lock()
        # Frames by shadow run and served model that were dropped since they were last counted.
        self._dropped: Counter[tuple[int, str]] = Counter()
        self._errors: dict[int, str] = {}
        self._queue = BackgroundQueue("shadow", _WAITING_FRAMES, self._handle, self._count_dropped)

    def offer(self, answered: Answered) -> None:
        """Take a frame that a shadow model may have to see, without waiting for anything."""
        shadow = answered.served.shadow
        if shadow is None or not is_sampled(answered.prediction, shadow.wish.sample_rate):
            return
        # Probabilities are large, and nobody needs them here.
        inspection = replace(answered.inspection, probabilities=None)
        if not self._queue.offer(replace(answered, inspection=inspection)):
            self._drop(shadow.run_id, answered)

    def last_error(self, run_id: int) -> str | None:
        """Return why the shadow model last gave no answer, None if it always did."""
        return self._errors.get(run_id)

    def wait(self) -> None:
        """Wait until everything that was taken has been handled."""
        self._queue.wait()

    def close(self) -> None:
        """End after the frame in hand."""
        self._queue.close()

    def _handle(self, answered: Answered) -> None:
        shadow = answered.served.shadow
        assert shadow is not None  # `offer` has seen to it.
        run_id, wish = shadow.run_id, shadow.wish
        if not self._wait_until_idle():
            self._drop(run_id, answered)
            return
        try:
            said = self._ask(wish.model, answered.frame)
        except ShadowFailed as error:
            self._errors[run_id] = str(error)
            self._count(run_id, answered, failed=1)
            return
        line = answered.prediction.model_dump(mode="json", by_alias=True)
        found = compare(line, said)
        if not found.is_complete:
            bounds = Bounds(wish.max_bytes, max_frames=wish.max_frames)
            kept = Disagreement(run_id, dict(said))
            self._frames.add(answered, "disagreement", bounds, kept)
        self._count(run_id, answered, **_counts(found))

    def _wait_until_idle(self) -> bool:
        deadline_s = time.monotonic() + _PATIENCE_S
        while not self._is_idle():
            if time.monotonic() > deadline_s:
                return False
            time.sleep(_LOOK_AGAIN_S)
        return True

    def _drop(self, run_id: int, answered: Answered) -> None:
        with self._guard:
            self._dropped[run_id, answered.served.model_id] += 1

    def _count_dropped(self) -> None:
        with self._guard:
            dropped, self._dropped = self._dropped, Counter()
        if not dropped:
            return
        with self._writes.begin() as session:
            for (run_id, served), count in dropped.items():
                _add(session, run_id, served, {"dropped": count})

    def _count(self, run_id: int, answered: Answered, **counts: int) -> None:
        with self._writes.begin() as session:
            _add(session, run_id, answered.served.model_id, counts)


def is_sampled(prediction: Prediction, sample_rate: float) -> bool:
    """Return whether a picture is in the sample; the same picture always is, or never."""
    sha256 = prediction.image.sha256
    return sha256 is not None and int(sha256[:8], 16) < sample_rate * _SAMPLE_SPACE


def begin(session: Session, deployment: Deployment, wish: ShadowWish) -> ShadowRun | None:
    """Let a model run beside a deployment; None if that very wish is fulfilled already.

    A run that is under way ends; its counts stay.
    """
    current = _current(session, deployment)
    if current is not None:
        if current.wish == wish.model_dump(mode="json"):
            return None
        current.ended_at = now_utc()
    run = ShadowRun(
        deployment=deployment.name, model_id=wish.model, wish=wish.model_dump(mode="json")
    )
    session.add(run)
    session.flush()
    deployment.shadow_run_id = run.id
    session.flush()
    return run


def end(session: Session, deployment: Deployment) -> ShadowRun:
    """Take the model away that runs beside a deployment.

    Raises:
        Conflict: None does.
    """
    run = _current(session, deployment)
    if run is None:
        raise Conflict(
            "no_shadow",
            f"no model runs beside deployment {deployment.name!r}",
            hint=f"PUT /deployments/{deployment.name}/shadow begins one",
        )
    run.ended_at = now_utc()
    deployment.shadow_run_id = None
    session.flush()
    return run


def latest(session: Session, name: str) -> ShadowRun:
    """Return a deployment's newest shadow run, which may have ended.

    Raises:
        NotFound: There was none.
    """
    newest = select(ShadowRun).where(ShadowRun.deployment == name).order_by(ShadowRun.id.desc())
    run = session.scalars(newest.limit(1)).one_or_none()
    if run is None:
        raise NotFound(
            "no_shadow",
            f"no model has run beside deployment {name!r}",
            hint=f"PUT /deployments/{name}/shadow begins one",
        )
    return run


def counts_of(session: Session, run_id: int) -> list[ShadowCount]:
    """Return what became of a run's frames, for each model that was served meanwhile."""
    rows = select(ShadowCount).where(ShadowCount.shadow_run_id == run_id)
    return list(session.scalars(rows.order_by(ShadowCount.served_model_id)))


def disagreements(session: Session, run: ShadowRun) -> int:
    """Return how many frames are kept on which a run's answers differ."""
    kept = select(func.count()).where(
        KeptFrame.deployment == run.deployment,
        KeptFrame.cause == "disagreement",
        KeptFrame.shadow_run_id == run.id,
    )
    return session.scalar(kept) or 0


def _current(session: Session, deployment: Deployment) -> ShadowRun | None:
    run_id = deployment.shadow_run_id
    return None if run_id is None else session.get(ShadowRun, run_id)


def _counts(found: Agreement) -> dict[str, int]:
    return {
        "compared": 1,
        "same_verdict": int(found.same_verdict),
        "agreed": int(found.is_complete),
    }


def _add(session: Session, run_id: int, served: str, counts: Mapping[str, int]) -> None:
    row = session.get(ShadowCount, (run_id, served))
    if row is None:
        row = ShadowCount(shadow_run_id=run_id, served_model_id=served)
        session.add(row)
        session.flush()
    for name, count in counts.items():
        setattr(row, name, getattr(row, name) + count)
