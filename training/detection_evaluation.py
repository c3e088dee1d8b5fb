"""A frozen detector on whole frames: choosing the operating point, then judging it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from data import Frame
from models import ClassThreshold, Detections, OperatingPoint, Pixels
from models.certificate import exact_interval
from training.average_precision import JudgedFrame, average_precision, labelled_boxes
from training.box_matches import (
    MATCH_IOU,
    ScoredMatches,
    best_threshold,
    match_boxes,
    recall_at_false_rates,
)
from training.free_response import FALSE_REGIONS_A_FRAME as FALSE_BOXES_A_FRAME
from training.free_response import free_response
from training.region_sizes import MOST_CURVE_BINS, SizeCounts
from training.threshold_ladder import ladder_thresholds
from training.verdict_rates import VerdictCounts


class DetectionModel(Protocol):
    """Anything that answers a frame with boxes."""

    def detections(self, pixels: Pixels) -> Detections:
        """Return the boxes of a frame, strongest first."""


def judge_frames(
    model: DetectionModel,
    frames: Iterable[Frame],
    classes: Sequence[str],
    parts: Mapping[str, str] | None = None,
    tell: Callable[[Frame, JudgedFrame], None] | None = None,
) -> list[JudgedFrame]:
    """Ask a model about each frame and put the labelled boxes beside its own.

    Pixels are let go of, so that memory grows with the boxes alone.

    Args:
        model: The detector.
        frames: One is in memory at a time.
        classes: In the order of the model's classes.
        parts: The part of each frame by its name; a frame that is not in it is a part of its own.
        tell: Is shown each frame while its pixels are there.
    """
    known = parts or {}
    judged_frames = []
    for frame in frames:
        judged = JudgedFrame(
            model.detections(frame.pixels),
            labelled_boxes(frame, classes),
            known.get(frame.name, frame.name),
        )
        if tell is not None:
            tell(frame, judged)
        judged_frames.append(judged)
    return judged_frames


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


@dataclass(frozen=True)
class DetectionFigures:
    """What frames that chose nothing say of a detector at a fixed operating point.

    Attributes:
        metrics: One number or rate a figure; they stay with the model.
        details: Curves and tables by size, as `training.evaluation.Judgement` has them.
    """

    metrics: dict[str, Any]
    details: dict[str, Any]


def evaluate_detections(
    frames: Sequence[JudgedFrame],
    classes: Sequence[str],
    point: OperatingPoint,
    *,
    max_detections: int,
) -> DetectionFigures:
    """Judge a detector on frames that chose nothing, see ``docs/detection.md``."""
    good_frames = sum(frame.is_good for frame in frames)
    matches = {name: match_boxes(frames, index) for index, name in enumerate(classes)}
    thresholds = {name: point.classes[name].threshold for name in classes}
    verdicts = _count_verdicts(frames, list(thresholds.values()))
    metrics = {
        "frames": len(frames),
        "match_iou": MATCH_IOU,
        "boxes": average_precision(frames, classes, max_detections=max_detections),
        "regions": {
            name: _region_metrics(each, thresholds[name], good_frames)
            for name, each in matches.items()
        },
        "escape": verdicts.frames.escape(),
        "overkill": verdicts.frames.overkill(),
        "by_part": verdicts.by_part(),
    }
    details = {
        "frames": {"defective": len(frames) - good_frames, "good": good_frames},
        "classes": {
            name: _class_details(each, thresholds[name], good_frames)
            for name, each in matches.items()
        },
        "escape_overkill": verdicts.curve(point),
    }
    return DetectionFigures(metrics, details)


def _count_verdicts(frames: Sequence[JudgedFrame], thresholds: Sequence[float]) -> VerdictCounts:
    """Count frames by how many rungs of the ladder their strongest box of a class reaches."""
    verdicts = VerdictCounts()
    ladders = [np.asarray(ladder_thresholds(threshold)) for threshold in thresholds]
    for frame in frames:
        pairs = zip(frame.found.scores, frame.found.classes, strict=True)
        reached = [int((ladders[index] <= score).sum()) for score, index in pairs]
        verdicts.add(frame.part, is_defective=not frame.is_good, reached=max(reached, default=0))
    return verdicts


def _region_metrics(matches: ScoredMatches, threshold: float, good_frames: int) -> dict[str, Any]:
    found, false = matches.at(threshold)
    on_good = int((matches.on_good & (matches.scores >= threshold)).sum())
    return {
        "recall": exact_interval(found, matches.labelled),
        "false_per_frame": false / max(matches.frames, 1),
        "false_per_good_frame": on_good / good_frames if good_frames else None,
        "recall_at_false_boxes_a_frame": recall_at_false_rates(matches, FALSE_BOXES_A_FRAME),
    }


def _class_details(matches: ScoredMatches, threshold: float, good_frames: int) -> dict[str, Any]:
    found = matches.found_at >= threshold
    by_area, by_short_side = SizeCounts(), SizeCounts()
    by_area.add(matches.sides_px.prod(axis=1), found)
    by_short_side.add(matches.sides_px.min(axis=1), found)
    rungs = np.asarray(ladder_thresholds(threshold))
    located = (matches.found_at[None] >= rungs[:, None]).sum(axis=1)
    false = (matches.on_good & (matches.scores[None] >= rungs[:, None])).sum(axis=1)
    return {
        "recall_by_area": by_area.recall_by_size(),
        "recall_by_short_side": by_short_side.recall_by_size(),
        "detection_by_short_side": by_short_side.recall_by_size(MOST_CURVE_BINS),
        "free_response": free_response(located, matches.labelled, false, good_frames, threshold),
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
