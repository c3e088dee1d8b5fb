"""What became of each test frame under a detector is what its evaluation counts."""

from collections.abc import Sequence

import numpy as np

from data import GoodFrame, Item
from models import ClassThreshold, Detections, OperatingPoint
from training.average_precision import JudgedFrame, LabelledBoxes
from training.box_outcomes import box_outcomes
from training.detection_evaluation import evaluate_detections
from training.frame_outcomes import DefectOutcome, defects_found

CLASSES = ("pit", "scratch")
POINT = OperatingPoint(
    classes={"pit": ClassThreshold(threshold=0.5), "scratch": ClassThreshold(threshold=0.8)}
)
Place = tuple[float, float, float, float]


def item(name: str, group: str | None = None) -> Item:
    return Item(name, name, name, "0" * 64, 100, 80, 1, 8, group, "test", GoodFrame())


def judged(
    reported: Sequence[tuple[int, float, Place]], labelled: Sequence[tuple[int, Place]]
) -> JudgedFrame:
    """A frame's boxes, left, top, right and bottom, of classes by their number."""
    strongest_first = sorted(reported, key=lambda each: -each[1])
    found = Detections(
        np.array([box for _, _, box in strongest_first], np.float32).reshape(-1, 4),
        np.array([score for _, score, _ in strongest_first], np.float32),
        np.array([index for index, _, _ in strongest_first], np.int64),
    )
    boxes = np.array([box for _, box in labelled], np.float32).reshape(-1, 4)
    truth = LabelledBoxes(boxes, np.array([index for index, _ in labelled], np.int64))
    return JudgedFrame(found, truth)


FRAMES = [
    judged(
        # The second pit is below the threshold, the scratch's box is off, the last is of no defect.
        [
            (0, 0.9, (10, 10, 20, 30)),
            (0, 0.4, (40, 10, 50, 20)),
            (1, 0.9, (60, 40, 90, 44)),
            (0, 0.6, (70, 60, 80, 70)),
        ],
        [(0, (10, 10, 20, 28)), (0, (40, 10, 50, 20)), (1, (60, 44, 90, 48))],
    ),
    judged([(1, 0.7, (5, 5, 9, 9))], []),
    judged([(1, 0.8, (5, 5, 9, 9))], []),
]
ITEMS = [item("a.png", "lot 1"), item("b.png"), item("c.png")]


def test_each_frame_is_noted_with_its_defects_and_what_was_reported_for_nothing() -> None:
    defective, good, rejected = box_outcomes(FRAMES, ITEMS, CLASSES, POINT)
    assert (defective.name, defective.group, defective.defective) == ("a.png", "lot 1", True)
    assert defective.defects == (
        DefectOutcome("pit", 180, 10.0, found=True),
        DefectOutcome("pit", 100, 10.0, found=False),
        DefectOutcome("scratch", 120, 4.0, found=False),
    )
    assert (defective.rejected, defective.false_regions, defective.pixels) == (True, 2, None)
    assert (good.defective, good.rejected, good.false_regions) == (False, False, 0)
    assert (rejected.defective, rejected.rejected, rejected.false_regions) == (False, True, 1)


def test_outcomes_add_up_to_the_reports_figures() -> None:
    outcomes = box_outcomes(FRAMES, ITEMS, CLASSES, POINT)
    metrics = evaluate_detections(FRAMES, CLASSES, POINT, max_detections=100).metrics
    found = defects_found(outcomes)["all"]
    recalls = [metrics["regions"][name]["recall"] for name in CLASSES]
    assert found["events"] == sum(recall["events"] for recall in recalls) == 1
    assert found["n"] == sum(recall["n"] for recall in recalls)
    overkill = sum(outcome.rejected for outcome in outcomes if not outcome.defective)
    assert overkill == metrics["overkill"]["events"] == 1
