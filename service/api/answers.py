"""The last step of an answer: it is recorded, counted and spelled, in a thread."""

import time
from collections.abc import Sequence

from fastapi import Response

from models import BundleInfo
from service.api.inspections import Draft, Wish, prediction_of
from service.ledger.recorder import PredictionRecorder
from service.resources import PartPrediction, Prediction, Verdict
from service.serving.follow_up import FollowUp
from service.serving.line_frames import Answered
from service.serving.metrics import ServingMetrics


class Answers:
    """Makes answers of what is known of frames; safe for several threads.

    Args:
        recorder: Writes them into the ledger.
        metrics: Counts them.
        follow_up: Takes what a deployment wants of its frames afterwards.
    """

    def __init__(
        self, recorder: PredictionRecorder, metrics: ServingMetrics, follow_up: FollowUp
    ) -> None:
        self._recorder = recorder
        self._metrics = metrics
        self._follow_up = follow_up

    def frame(self, draft: Draft, wish: Wish, model: BundleInfo) -> Prediction:
        """Return one frame's answer, with its place in the ledger."""
        answer = self._recorder.record(prediction_of(draft, wish), model, wish.deadline_s)
        self._metrics.count(answer)
        self._follow(draft, wish, answer)
        return answer

    def _follow(self, draft: Draft, wish: Wish, answer: Prediction) -> None:
        """Offer a frame that was inspected in time to what comes after; nothing waits for it."""
        if answer.verdict == "NOT_INSPECTED" or draft.inspected is None or draft.upload is None:
            return
        inspected = draft.inspected
        self._follow_up.offer(
            Answered(draft.upload, wish.served, answer, inspected.inspection, inspected.info)
        )

    def part(
        self, drafts: Sequence[Draft], wish: Wish, part_id: str, model: BundleInfo
    ) -> PartPrediction:
        """Return the answer on a part, each of whose frames has its own in the ledger too."""
        images = tuple(self.frame(draft, wish, model) for draft in drafts)
        answer = PartPrediction(
            part_id=part_id,
            verdict=part_verdict([image.verdict for image in images]),
            images=images,
            warnings=wish.served.warnings
            if images
            else ("the deadline passed before the frames had arrived", *wish.served.warnings),
            timings_ms={"total": 1000 * (time.perf_counter() - wish.begin_s)},
            request_id=wish.request_id,
        )
        answer = self._recorder.record_part(
            answer, wish.served.model_id, wish.served.deployment, wish.deadline_s
        )
        self._metrics.count_part(answer.verdict, wish.served.deployment)
        return answer


def part_verdict(verdicts: Sequence[Verdict]) -> Verdict:
    """Return a part's verdict: a defect in one frame is enough, and an OK needs every frame."""
    if "NG" in verdicts:
        return "NG"
    return "OK" if verdicts and all(verdict == "OK" for verdict in verdicts) else "NOT_INSPECTED"


def json_response(spelled: str) -> Response:
    """Return an answer that was spelled in a thread: a thousand outlines take their time."""
    return Response(spelled, media_type="application/json")
