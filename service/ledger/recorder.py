"""Answers of ``/predict`` on their way into the ledger, which is opened with the first one."""

import logging
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from models import BundleInfo
from service.errors import StorageError
from service.ledger.chain import Entry
from service.ledger.journal import Ledger, Retention
from service.ledger.predictions import part_body, prediction_body
from service.resources import PartPrediction, Prediction

Answer = TypeVar("Answer", Prediction, PartPrediction)

# After an answer is due; what is left of the margin that /predict promises is for spelling it.
_GRACE_S = 0.02
# Entries that wait for a disk that stalls, of a kilobyte or two.
_MOST_PENDING = 10_000

logger = logging.getLogger(__name__)


class PredictionRecorder:
    """Records predictions; safe for several threads.

    A ledger that can't be opened is tried again with the next prediction: a line needs its verdicts
    whether the record of them is kept or not, and each says that it is not.  For the same reason a
    disk that stalls holds up no answer beyond its deadline: the entry follows when it goes on.

    Args:
        directory: Of the ledger.
        retention: How much is kept.

    Side effects: opens the ledger at the first prediction, see `Ledger`; starts a thread.
    """

    def __init__(self, directory: Path, retention: Retention) -> None:
        self._directory = directory
        self._retention = retention
        self._guard = threading.Lock()
        self._ledger: Ledger | None = None
        self._writer = ThreadPoolExecutor(1, "ledger-writer")
        self._pending = threading.BoundedSemaphore(_MOST_PENDING)

    def record(
        self, answer: Prediction, model: BundleInfo, by_s: float | None = None
    ) -> Prediction:
        """Return the answer with its place in the ledger, or with a warning that it has none.

        Args:
            answer: To be recorded.
            model: That gave it.
            by_s: When the answer is due, on the clock of `time.perf_counter`; None may wait.
        """
        return self._recorded(answer, prediction_body(answer, model), by_s)

    def record_part(
        self,
        answer: PartPrediction,
        model_id: str,
        deployment: str | None,
        by_s: float | None = None,
    ) -> PartPrediction:
        """Return the answer on a part, as `record` does; those on its frames are recorded."""
        return self._recorded(answer, part_body(answer, model_id, deployment), by_s)

    def _recorded(self, answer: Answer, body: Entry, by_s: float | None) -> Answer:
        try:
            entry = self._written(body, by_s)
        except StorageError as error:
            logger.exception("%s is not in the ledger", answer.request_id)
            warning = f"not recorded in the ledger: {error.detail}"
            return answer.model_copy(update={"warnings": (*answer.warnings, warning)})
        return answer.model_copy(update={"ledger_sequence": entry["sequence"]})

    def append(self, body: Entry) -> int | None:
        """Write what else happened between predictions; return its place, None if it has none."""
        try:
            sequence: int = self._opened().append(body)["sequence"]
        except StorageError:
            logger.exception("a change of kind %s is not in the ledger", body["kind"])
            return None
        return sequence

    def close(self) -> None:
        """Write everything out and let go of the files."""
        self._writer.shutdown()
        with self._guard:
            if self._ledger is not None:
                self._ledger.close()
                self._ledger = None

    def _opened(self) -> Ledger:
        with self._guard:
            if self._ledger is None:
                self._ledger = Ledger(self._directory, self._retention)
            return self._ledger

    def _written(self, body: Entry, by_s: float | None) -> Entry:
        """Append an entry, or leave it to the writer when the answer is due.

        Raises:
            StorageError: It could not be written, or not yet.
        """
        if not self._pending.acquire(blocking=False):
            raise _slow(f"{_MOST_PENDING} entries wait for it, and this one is left out")
        writing = self._writer.submit(lambda: self._opened().append(body))
        writing.add_done_callback(lambda _: self._pending.release())
        left_s = None if by_s is None else max(0.0, by_s + _GRACE_S - time.perf_counter())
        try:
            return writing.result(left_s)
        except TimeoutError as error:
            writing.add_done_callback(_log_failure)
            raise _slow("the entry follows when it goes on") from error


def _log_failure(writing: "Future[Entry]") -> None:
    error = writing.exception()
    if error is not None:
        logger.error("an entry that was to follow is not in the ledger", exc_info=error)


def _slow(what_now: str) -> StorageError:
    return StorageError(
        "ledger_slow",
        f"the disk stalls; {what_now}",
        hint="see what else writes to the disk of the storage directory",
    )
