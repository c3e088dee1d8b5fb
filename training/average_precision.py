"""Average precision of boxes over a data set, counted by pycocotools.

Shapes: M boxes of one frame.
"""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data import Frame
from models import Detections


@dataclass(frozen=True)
class LabelledBoxes:
    """The defects of one frame.

    Attributes:
        boxes: (M, 4) float32: left, top, right and bottom in pixels of the frame.
        classes: (M,) int64: index of the class.
    """

    boxes: NDArray[np.float32]
    classes: NDArray[np.int64]


@dataclass(frozen=True)
class JudgedFrame:
    """What a detector said of one frame, and what is there.

    Attributes:
        found: Strongest first.
        labelled: Of any class; none on a good frame.
        part: The part that the frame shows.
    """

    found: Detections
    labelled: LabelledBoxes
    part: str = ""

    @property
    def is_good(self) -> bool:
        """Whether no defect is labelled."""
        return len(self.labelled.classes) == 0


def labelled_boxes(frame: Frame, classes: Sequence[str]) -> LabelledBoxes:
    """Return a frame's boxes as arrays; a frame without a defect has none."""
    assert frame.boxes is not None  # The data set was asked for boxes.
    return LabelledBoxes(
        boxes=np.array(
            [[b.x, b.y, b.x + b.width, b.y + b.height] for b in frame.boxes], np.float32
        ).reshape(-1, 4),
        classes=np.array([classes.index(box.class_name) for box in frame.boxes], np.int64),
    )


def average_precision(
    frames: Sequence[JudgedFrame], classes: Sequence[str], *, max_detections: int
) -> dict[str, Any]:
    """Return AP at an overlap of 0.5, and its mean over 0.5 to 0.95 in steps of 0.05, by class.

    As COCO defines it: precision interpolated at 101 recalls, boxes matched strongest first.  It
    deviates in not splitting by size.

    Returns:
        ``classes``: {name: {``ap50``, ``ap50_95``, ``labelled``}}, None where the frames show no
        such defect; and ``ap50`` and ``ap50_95``, the means over the classes that they show.
    """
    precision = _precision(frames, len(classes), max_detections)
    by_class: dict[str, dict[str, Any]] = {}
    for index, name in enumerate(classes):
        labelled = sum(int((frame.labelled.classes == index).sum()) for frame in frames)
        known = labelled > 0
        by_class[name] = {
            "ap50": float(precision[0, :, index].mean()) if known else None,
            "ap50_95": float(precision[:, :, index].mean()) if known else None,
            "labelled": labelled,
        }
    return {
        "ap50": _mean([scores["ap50"] for scores in by_class.values()]),
        "ap50_95": _mean([scores["ap50_95"] for scores in by_class.values()]),
        "classes": by_class,
    }


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _precision(
    frames: Sequence[JudgedFrame], class_count: int, max_detections: int
) -> NDArray[np.float64]:
    """Return precision (overlaps, recalls, classes), 0 where a class has nothing to be found."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    # It tells of its progress on standard output, which is the run's log.
    with contextlib.redirect_stdout(io.StringIO()):
        labelled, found = COCO(), COCO()
        for coco, entries in (
            (labelled, [_entries(n, f.labelled, None) for n, f in enumerate(frames, 1)]),
            (found, [_entries(n, f.found, f.found.scores) for n, f in enumerate(frames, 1)]),
        ):
            coco.dataset = {
                "images": [{"id": number} for number in range(1, len(frames) + 1)],
                "categories": [{"id": index} for index in range(class_count)],
                "annotations": [
                    # An id of 0 is taken for "matched by none".
                    {**entry, "id": number}
                    for number, entry in enumerate((e for group in entries for e in group), 1)
                ],
            }
            coco.createIndex()
        judge = COCOeval(labelled, found, "bbox")
        judge.params.areaRng, judge.params.areaRngLbl = [[0, 1e10]], ["all"]
        judge.params.maxDets = [max_detections]
        judge.evaluate()
        judge.accumulate()
    # The last two axes, sizes and limits, have one entry each.
    precision: NDArray[np.float64] = np.maximum(judge.eval["precision"][..., 0, 0], 0)
    return precision


def _entries(
    number: int, boxes: LabelledBoxes | Detections, scores: NDArray[np.float32] | None
) -> list[dict[str, Any]]:
    entries = []
    for place, (left, top, right, bottom) in enumerate(boxes.boxes.tolist()):
        entry: dict[str, Any] = {
            "image_id": number,
            "category_id": int(boxes.classes[place]),
            "bbox": [left, top, right - left, bottom - top],
            "area": (right - left) * (bottom - top),
            "iscrowd": 0,
        }
        entries.append(entry if scores is None else {**entry, "score": float(scores[place])})
    return entries
