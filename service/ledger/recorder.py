"""Answers of ``/predict`` on their way into the ledger, which is opened with the first one."""

import logging
import threading
from pathlib import Path
from typing import TypeVar

from models import BundleInfo
from service.errors import StorageError
from service.ledger.chain import Entry
from service.ledger.journal import Ledger, Retention
from service.ledger.predictions import part_body, prediction_body
from service.resources import PartPrediction, Prediction

Answer = TypeVar("Answer", Prediction, PartPrediction)

logger = logging.getLogger(__name__)


class PredictionRecorder:
    """Records predictions; safe for several threads.

    A ledger that can't be opened is tried again with the next prediction: a line needs its verdicts
    whether the record of them is kept or not, and each says that it is not.

    Args:
        directory: Of the ledger.
        retention: How much is kept.

    Side effects: opens the ledger at the first prediction, see `Ledger`.
    """

    def __init__(self, directory: Path, retention: Retention) -> None:
        self._directory = directory
        self._retention = retention
        self._guard = threading.Lock()
        self._ledger: Ledger | None = None

    def record(self, answer: Prediction, model: BundleInfo) -> Prediction:
        """Return the answer with its place in the ledger, or with a warning that it has none."""
        return self._recorded(answer, prediction_body(answer, model))

    def record_part(
        self, answer: PartPrediction, model_id: str, deployment: str | None
    ) -> PartPrediction:
        """Return the answer on a part, as `record` does; those on its frames are recorded."""
        return self._recorded(answer, part_body(answer, model_id, deployment))

    def _recorded(self, answer: Answer, body: Entry) -> Answer:
        try:
            entry = self._opened().append(body)
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
        with self._guard:
            if self._ledger is not None:
                self._ledger.close()
                self._ledger = None

    def _opened(self) -> Ledger:
        with self._guard:
            if self._ledger is None:
                self._ledger = Ledger(self._directory, self._retention)
            return self._ledger
