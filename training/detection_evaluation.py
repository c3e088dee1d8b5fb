"""A frozen detector on whole frames: choosing the operating point, then judging it."""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from data import Frame
from models import ClassThreshold, Detections, OperatingPoint, Pixels
from training.average_precision import JudgedFrame, average_precision, labelled_boxes
from training.box_matches import (
    MATCH_IOU,
    ScoredMatches,
    best_threshold,
    match_boxes,
    recall_at_false_rates,
)
from training.metrics import exact_interval

# From one false box in ten frames, which a line can live with, to what only a first look shows.
FALSE_BOXES_A_FRAME = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0)


class DetectionModel(Protocol):
    """Anything that answers a frame with boxes."""

    def detections(self, pixels: Pixels) -> Detections:
        """Return the boxes of a frame, strongest first."""


def judge_frames(
    model: DetectionModel, frames: Iterable[Frame], classes: Sequence[str]
) -> list[JudgedFrame]:
    """Ask a model about each frame and put the labelled boxes beside its own.

    Pixels are let go of, so that memory grows with the boxes alone.
    """
    return [
        JudgedFrame(model.detections(frame.pixels), labelled_boxes(frame, classes))
        for frame in frames
    ]


def choose_box_thresholds(frames: Sequence[JudgedFrame], classes: Sequence[str]) -> OperatingPoint:
    """Choose each class's score threshold by F1 of the boxes found.

    Returns:
        A point whose classes say on what evidence they rest; a class that no calibration frame
        shows, or of which nothing is found at any score, keeps the default threshold and says so.
    """
    return OperatingPoint(
        classes={
            name: _class_threshold(name, match_boxes(frames, index))
            for index, name in enumerate(classes)
        }
    )


def _class_threshold(name: str, matches: ScoredMatches) -> ClassThreshold:
    evidence: dict[str, Any] = {"frames": matches.frames, "match_iou": MATCH_IOU}
    chosen = best_threshold(matches)
    if chosen is None:
        reason = f"none of the {matches.frames} calibration frames shows {name!r}"
        if matches.labelled:
            reason = f"none of the {matches.labelled} labelled boxes of {name!r} is found"
        return ClassThreshold(reason=reason, evidence={**evidence, "labelled": matches.labelled})
    threshold, counts = chosen
    return ClassThreshold(threshold=threshold, basis="calibration", evidence={**evidence, **counts})


def evaluate_detections(
    frames: Sequence[JudgedFrame],
    classes: Sequence[str],
    point: OperatingPoint,
    *,
    max_detections: int,
) -> dict[str, Any]:
    """Judge a detector on frames that chose nothing.

    Returns:
        Average precision over all thresholds; at the operating point boxes found and false boxes by
        class, escape and overkill by frame; recall at fixed numbers of false boxes a frame.  Rates
        have exact 95 % intervals.
    """
    regions = {}
    for index, name in enumerate(classes):
        matches = match_boxes(frames, index)
        found, false = matches.at(point.classes[name].threshold)
        regions[name] = {
            "recall": exact_interval(found, matches.labelled),
            "false_per_frame": false / max(len(frames), 1),
            "recall_at_false_boxes_a_frame": recall_at_false_rates(matches, FALSE_BOXES_A_FRAME),
        }
    thresholds = np.array([point.classes[name].threshold for name in classes])
    rejected = [bool((f.found.scores >= thresholds[f.found.classes]).any()) for f in frames]
    defective = [len(f.labelled.classes) > 0 for f in frames]
    pairs = list(zip(rejected, defective, strict=True))
    return {
        "frames": len(frames),
        "match_iou": MATCH_IOU,
        "boxes": average_precision(frames, classes, max_detections=max_detections),
        "regions": regions,
        "escape": exact_interval(pairs.count((False, True)), sum(defective)),
        "overkill": exact_interval(pairs.count((True, False)), len(frames) - sum(defective)),
    }


def trivial_box_baselines(
    frames: Iterable[Frame], classes: Sequence[str], *, max_detections: int
) -> dict[str, Any]:
    """Return the average precision of answers that need no training.

    ``whole_frame`` reports each class once, as large as the frame; ``nothing`` has an average
    precision of 0 and lets every defect escape.
    """
    judged = []
    for frame in frames:
        height, width = frame.pixels.shape[:2]
        everything = Detections(
            boxes=np.tile(np.array([0, 0, width, height], np.float32), (len(classes), 1)),
            scores=np.ones(len(classes), np.float32),
            classes=np.arange(len(classes)),
        )
        judged.append(JudgedFrame(everything, labelled_boxes(frame, classes)))
    scores = average_precision(judged, classes, max_detections=max(max_detections, len(classes)))
    whole = {name: scores[name] for name in ("ap50", "ap50_95")}
    return {"nothing": {"ap50": 0.0, "ap50_95": 0.0, "escape": 1.0}, "whole_frame": whole}
