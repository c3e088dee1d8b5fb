"""Frames of the line that are kept: NG and uncertain ones for relabelling, and disagreements.

Files lie under ``kept/`` by digest, apart from the blobs of data sets, because they are deleted in
time: beyond a number of bytes or frames, or an age, the oldest first.
"""

import hashlib
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from models import BundleInfo, Inspection
from service.database.engine import session_factory
from service.database.tables import Deployment, KeptFrame, now_utc
from service.errors import InvalidRequest, NotFound
from service.resources import Prediction
from service.serving.background_queue import BackgroundQueue
from service.serving.deployment_resources import Keeping, UncertainWish
from service.serving.line_frames import Answered, picture_file
from service.storage import Storage

Cause = Literal["ng", "uncertain", "disagreement"]

# Each holds a frame and its probabilities.
_WAITING_FRAMES = 8
_ROWS_AT_A_TIME = 8
_PRUNE_EVERY = timedelta(minutes=10)


@dataclass(frozen=True)
class Bounds:
    """How much is kept; the oldest go first.

    Attributes:
        max_bytes: Of all files, each counted as often as it is kept.
        max_frames: None for as many as fit.
        max_age: None keeps them however old.
    """

    max_bytes: int
    max_frames: int | None = None
    max_age: timedelta | None = None


@dataclass(frozen=True)
class Disagreement:
    """What a shadow model said otherwise."""

    shadow_run_id: int
    answer: dict[str, Any]


class KeptFrames:
    """The kept frames of one installation; safe for several threads of one process.

    Args:
        engine: Of the database.
        storage: Keeps the files.
    """

    def __init__(self, engine: Engine, storage: Storage) -> None:
        self._writes = session_factory(engine)
        self._storage = storage
        # A file is deleted with its last row: nobody may add another one in between.
        self._guard = threading.Lock()

    def add(
        self,
        answered: Answered,
        cause: Cause,
        bounds: Bounds,
        disagreement: Disagreement | None = None,
    ) -> None:
        """Keep a frame with its answer, then delete what is beyond the bounds.

        Raises:
            StorageError: The disk is full or fails.
        """
        content, media_type = picture_file(answered.frame)
        sha256 = hashlib.sha256(content).hexdigest()
        deployment, image = answered.served.deployment, answered.prediction.image
        # Frames of a model named itself are not followed, nor those that nobody looked at.
        assert deployment is not None
        assert image.sha256 is not None
        assert image.width is not None
        assert image.height is not None
        row = KeptFrame(
            deployment=deployment,
            cause=cause,
            image_sha256=image.sha256,
            file_sha256=sha256,
            media_type=media_type,
            byte_count=len(content),
            width=image.width,
            height=image.height,
            answer=_answer(answered.prediction),
            shadow_run_id=None if disagreement is None else disagreement.shadow_run_id,
            shadow_answer=None if disagreement is None else disagreement.answer,
        )
        with self._guard:
            self._storage.put_kept(content, sha256)
            with self._writes.begin() as session:
                session.add(row)
        self.prune(deployment, _causes_beside(cause), bounds)

    def prune(self, deployment: str, causes: Sequence[Cause], bounds: Bounds) -> None:
        """Delete the oldest frames of some causes that are beyond the bounds."""
        with self._guard:
            with self._writes.begin() as session:
                leaving = _beyond(session, deployment, causes, bounds)
                for row in leaving:
                    session.delete(row)
                session.flush()
                unnamed = [
                    sha for sha in {row.file_sha256 for row in leaving} if _is_unnamed(session, sha)
                ]
            # Rows name files that exist, so a file goes last; one that a crash leaves is taken over
            # by the next frame of its digest.
            for sha256 in unnamed:
                self._storage.kept_path(sha256).unlink(missing_ok=True)


class FrameKeeper:
    """Keeps the frames that a deployment asks for, after their answers were given.

    Args:
        engine: Of the database.
        frames: Where they are kept.
    """

    def __init__(self, engine: Engine, frames: KeptFrames) -> None:
        self._reads = session_factory(engine, writes=False)
        self._frames = frames
        self._not_kept: Counter[str] = Counter()
        self._pruned_at = now_utc()
        self._queue = BackgroundQueue("kept-frames", _WAITING_FRAMES, self._handle, self._tick)

    def offer(self, answered: Answered) -> None:
        """Take a frame that may have to be kept, without waiting for anything."""
        keeping = answered.served.keeping
        if keeping is None:
            return
        is_ng = answered.prediction.verdict == "NG"
        is_wanted = (is_ng and keeping.ng) or keeping.uncertain is not None
        if is_wanted and not self._queue.offer(answered):
            self._not_kept[answered.served.deployment or ""] += 1

    def not_kept(self, deployment: str) -> int:
        """Return how many frames found no place in the queue since the service started."""
        return self._not_kept[deployment]

    def prune_all(self) -> None:
        """Delete what has grown too old, and what a smaller bound leaves no room for."""
        with self._reads() as session:
            rows = session.scalars(select(Deployment)).all()
        for row in rows:
            # Where nothing is kept any more, what is left goes in the usual time.
            keeping = Keeping() if row.keeping is None else Keeping.model_validate(row.keeping)
            self._frames.prune(row.name, _causes_beside("ng"), bounds_of(keeping))

    def wait(self) -> None:
        """Wait until everything that was taken has been handled."""
        self._queue.wait()

    def close(self) -> None:
        """End after the frame in hand."""
        self._queue.close()

    def _handle(self, answered: Answered) -> None:
        keeping = answered.served.keeping
        assert keeping is not None  # `offer` has seen to it.
        cause = cause_of(keeping, answered.prediction, answered.inspection, answered.info)
        if cause is not None:
            try:
                self._frames.add(answered, cause, bounds_of(keeping))
            except Exception:
                self._not_kept[answered.served.deployment or ""] += 1
                raise

    def _tick(self) -> None:
        if now_utc() - self._pruned_at >= _PRUNE_EVERY:
            self._pruned_at = now_utc()
            self.prune_all()


def cause_of(
    keeping: Keeping, prediction: Prediction, inspection: Inspection, info: BundleInfo
) -> Cause | None:
    """Return why a frame is to be kept, None if it is not."""
    if keeping.ng and prediction.verdict == "NG":
        return "ng"
    if keeping.uncertain is not None and is_uncertain(keeping.uncertain, inspection, info):
        return "uncertain"
    return None


def is_uncertain(wish: UncertainWish, inspection: Inspection, info: BundleInfo) -> bool:
    """Return whether a verdict would be another one with all thresholds moved by the margin.

    Areas stay out of it: an OK is uncertain if any pixel comes within the margin of its threshold,
    an NG if no defect's highest pixel lies more than the margin above. Of a detector only boxes
    above the threshold are known, so that its OKs are never uncertain.
    """
    point = info.operating_point
    if inspection.verdict == "NG":
        return all(
            defect.score < point.classes[defect.class_name].threshold + wish.margin
            for defect in inspection.defects
        )
    if inspection.probabilities is None:
        return False
    peaks = inspection.probabilities.max(axis=(1, 2))
    return any(
        peak >= point.classes[name].threshold - wish.margin
        for name, peak in zip(info.classes, peaks, strict=True)
    )


def bounds_of(keeping: Keeping) -> Bounds:
    """Return how much a deployment keeps for relabelling."""
    return Bounds(keeping.max_bytes, max_age=timedelta(days=keeping.max_age_days))


def get(session: Session, deployment: str, frame_id: int) -> KeptFrame:
    """Return a kept frame.

    Raises:
        NotFound: It is not there, or not any more.
    """
    row = session.get(KeptFrame, frame_id)
    if row is None or row.deployment != deployment:
        raise NotFound(
            "kept_frame_not_found",
            f"deployment {deployment!r} keeps no frame {frame_id}",
            hint="the oldest are deleted in time; GET …/frames lists those that are there",
        )
    return row


def chosen(session: Session, deployment: str, frame_ids: Sequence[int]) -> list[KeptFrame]:
    """Return kept frames by their numbers, in that order.

    Raises:
        InvalidRequest: One of them is not kept by the deployment.
    """
    try:
        return [get(session, deployment, frame_id) for frame_id in frame_ids]
    except NotFound as error:
        raise InvalidRequest(error.code, error.detail, where="/frames", hint=error.hint) from error


def total(session: Session, deployment: str, causes: Sequence[Cause]) -> tuple[int, int]:
    """Return how many frames are kept for some causes, and their bytes."""
    found = session.execute(
        select(func.count(), func.coalesce(func.sum(KeptFrame.byte_count), 0)).where(
            KeptFrame.deployment == deployment, KeptFrame.cause.in_(causes)
        )
    ).one()
    return int(found[0]), int(found[1])


def _causes_beside(cause: Cause) -> tuple[Cause, ...]:
    """Return the causes that share the bounds of one."""
    return ("disagreement",) if cause == "disagreement" else ("ng", "uncertain")


def _beyond(
    session: Session, deployment: str, causes: Sequence[Cause], bounds: Bounds
) -> list[KeptFrame]:
    kept = (KeptFrame.deployment == deployment, KeptFrame.cause.in_(causes))
    count, byte_count = total(session, deployment, causes)
    oldest = None if bounds.max_age is None else now_utc() - bounds.max_age
    leaving: list[KeptFrame] = []
    # Mostly one frame goes for one that came: the others' answers are not to be read for that.
    oldest_first = select(KeptFrame).where(*kept).order_by(KeptFrame.id)
    for row in session.scalars(oldest_first.execution_options(yield_per=_ROWS_AT_A_TIME)):
        is_within = byte_count <= bounds.max_bytes and (
            bounds.max_frames is None or count <= bounds.max_frames
        )
        if is_within and (oldest is None or row.kept_at >= oldest):
            break
        leaving.append(row)
        count -= 1
        byte_count -= row.byte_count
    return leaving


def _is_unnamed(session: Session, file_sha256: str) -> bool:
    named = select(KeptFrame.id).where(KeptFrame.file_sha256 == file_sha256).limit(1)
    return session.scalar(named) is None


def _answer(prediction: Prediction) -> dict[str, Any]:
    """Return an answer without its pictures, which can be drawn anew."""
    return prediction.model_dump(mode="json", by_alias=True, exclude={"pictures", "masks"})
