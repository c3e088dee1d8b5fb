"""Which labelled and reported boxes of a frame a detector's gallery is offered."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data import Frame
from models import OperatingPoint
from models.detections import whole_pixels
from training.average_precision import JudgedFrame
from training.box_matches import match_places
from training.gallery import FINDINGS_A_FRAME, Crop, Finding, Gallery, Kind, cut_crop


@dataclass(frozen=True)
class _Matched:
    """One class's boxes on one frame, those of the model strongest first.

    Attributes:
        labelled: (L, 4) left, top, right, bottom.
        found_at: (L,) score of the box that finds each, 0 where none overlaps it enough.
        reported: (M, 4).
        scores: (M,).
        is_false: (M,) whether each finds nothing.
    """

    labelled: NDArray[np.float32]
    found_at: NDArray[np.float64]
    reported: NDArray[np.float32]
    scores: NDArray[np.float64]
    is_false: NDArray[np.bool_]


class BoxFindings:
    """Offers a gallery what a detector misses and what it reports for nothing, frame by frame.

    Args:
        gallery: Receives the findings.
        classes: In the order of the model's classes.
        point: At which a box counts as reported.
    """

    def __init__(self, gallery: Gallery, classes: Sequence[str], point: OperatingPoint) -> None:
        self._gallery = gallery
        self._classes = classes
        self._thresholds = [point.classes[name].threshold for name in classes]

    def add(self, frame: Frame, judged: JudgedFrame) -> None:
        """Offer the worst of one frame, class by class."""
        for index in range(len(self._classes)):
            boxes = _matched(judged, index)
            misses = self._misses(frame, boxes, index)
            for finding in (*misses, *self._alarms(frame, judged, boxes, index)):
                self._gallery.offer(finding, lambda each: self._crop(each, frame, judged))

    def _is_reported(self, boxes: _Matched, index: int) -> NDArray[np.bool_]:
        reported: NDArray[np.bool_] = boxes.scores >= self._thresholds[index]
        return reported

    def _misses(self, frame: Frame, boxes: _Matched, index: int) -> list[Finding]:
        """Return the labelled boxes that are found by the weakest ones, or by none."""
        return [
            self._finding(
                "miss",
                frame,
                index,
                boxes.labelled[place],
                score=float(boxes.found_at[place]),
                is_wrong=bool(boxes.found_at[place] < self._thresholds[index]),
            )
            for place in np.argsort(boxes.found_at, kind="stable")[:FINDINGS_A_FRAME]
        ]

    def _alarms(
        self, frame: Frame, judged: JudgedFrame, boxes: _Matched, index: int
    ) -> list[Finding]:
        """Return the reported boxes that find nothing; of a good frame else the nearest to it."""
        is_wrong = boxes.is_false & self._is_reported(boxes, index)
        shown = np.flatnonzero(is_wrong)[:FINDINGS_A_FRAME]
        if not shown.size and judged.is_good:
            shown = np.flatnonzero(boxes.is_false)[:1]
        return [
            self._finding(
                "false_alarm",
                frame,
                index,
                boxes.reported[place],
                score=float(boxes.scores[place]),
                is_wrong=bool(is_wrong[place]),
                labelled_as=self._labelled_as(boxes.reported[place], judged, index),
            )
            for place in shown
        ]

    def _labelled_as(
        self, box: NDArray[np.float32], judged: JudgedFrame, index: int
    ) -> tuple[str, ...]:
        """Return the other classes that a label of overlaps a box."""
        labels = judged.labelled
        shared = np.minimum(labels.boxes[:, 2:], box[2:]) - np.maximum(labels.boxes[:, :2], box[:2])
        touching = labels.classes[(shared > 0).all(axis=1)]
        return tuple(self._classes[other] for other in sorted({*touching.tolist()} - {index}))

    def _finding(
        self,
        kind: Kind,
        frame: Frame,
        index: int,
        box: NDArray[np.float32],
        *,
        score: float,
        is_wrong: bool,
        labelled_as: tuple[str, ...] = (),
    ) -> Finding:
        place = whole_pixels(box, (frame.pixels.shape[0], frame.pixels.shape[1]))
        return Finding(
            kind=kind,
            frame=frame.name,
            class_name=self._classes[index],
            box=place,
            area_px=place[2] * place[3],
            score=score,
            is_wrong=is_wrong,
            labelled_as=labelled_as,
        )

    def _crop(self, finding: Finding, frame: Frame, judged: JudgedFrame) -> Crop:
        index = self._classes.index(finding.class_name)
        boxes = _matched(judged, index)
        height, width = frame.pixels.shape[:2]
        return cut_crop(
            finding,
            frame.pixels,
            _filled(boxes.labelled, width, height),
            _filled(boxes.reported[self._is_reported(boxes, index)], width, height),
        )


def _matched(judged: JudgedFrame, index: int) -> _Matched:
    labelled = judged.labelled.boxes[judged.labelled.classes == index]
    mine = judged.found.classes == index
    reported = judged.found.boxes[mine]
    # In double precision, as thresholds are compared everywhere else.
    scores = judged.found.scores[mine].astype(np.float64)
    places = np.asarray(match_places(reported, labelled), np.int64)
    found_at = np.zeros(len(labelled))
    found_at[places[places >= 0]] = scores[places >= 0]
    return _Matched(labelled, found_at, reported, scores, places < 0)


def _filled(boxes: NDArray[np.float32], width: int, height: int) -> NDArray[np.bool_]:
    """Draw boxes into (H, W)."""
    drawn = np.zeros((height, width), np.bool_)
    for box in boxes:
        x, y, box_width, box_height = whole_pixels(box, (height, width))
        drawn[y : y + box_height, x : x + box_width] = True
    return drawn
