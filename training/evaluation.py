"""The frozen model on whole frames: choosing the operating point, then judging it."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from data import Frame, FrameDataset
from models import ClassThreshold, OperatingPoint, Pixels
from training.metrics import PixelCounts, ScoreHistogram, exact_interval
from training.regions import RegionMatch, best_min_area, match_regions

Frames = Callable[[], Iterable[Frame]]


class ProbabilityModel(Protocol):
    """Anything that answers a frame with a probability map (K, H, W)."""

    def probabilities(self, pixels: Pixels) -> NDArray[np.float32]:
        """Return the probability of each class at each pixel."""


def score_histograms(
    model: ProbabilityModel, frames: Iterable[Frame], classes: tuple[str, ...]
) -> dict[str, ScoreHistogram]:
    """Return each class's score histogram over the frames."""
    histograms = {name: ScoreHistogram() for name in classes}
    for frame in frames:
        probabilities = model.probabilities(frame.pixels)
        for index, name in enumerate(classes):
            histograms[name].add(probabilities[index], frame.mask[:, :, index])
    return histograms


def choose_operating_point(
    model: ProbabilityModel, frames: Frames, classes: tuple[str, ...]
) -> OperatingPoint:
    """Choose each class's threshold by pixel Dice, then its minimum area by the defects found.

    Args:
        model: The frozen model.
        frames: Called twice; gives the calibration frames.
        classes: In the order of the model's outputs.

    Returns:
        A point whose classes say on what evidence they rest; a class that no calibration frame
        shows keeps the default threshold and says so.
    """
    histograms = score_histograms(model, frames(), classes)
    matches: dict[str, list[RegionMatch]] = {name: [] for name in classes}
    frame_count = 0
    for frame in frames():
        frame_count += 1
        probabilities = model.probabilities(frame.pixels)
        for index, name in enumerate(classes):
            threshold = histograms[name].best_dice()[1]
            matches[name].append(
                match_regions(probabilities[index] >= threshold, frame.mask[:, :, index] != 0)
            )
    return OperatingPoint(
        classes={
            name: _class_threshold(name, histograms[name], matches[name], frame_count)
            for name in classes
        }
    )


def _class_threshold(
    name: str, histogram: ScoreHistogram, matches: list[RegionMatch], frame_count: int
) -> ClassThreshold:
    score, threshold = histogram.best_dice()
    if score is None:
        return ClassThreshold(
            basis="default",
            reason=f"none of the {frame_count} calibration frames shows {name!r}",
            evidence={"frames": frame_count},
        )
    min_area_px, evidence = best_min_area(matches)
    return ClassThreshold(
        threshold=threshold,
        min_area_px=min_area_px,
        basis="calibration",
        evidence={"frames": frame_count, "pixel_dice": score, **evidence},
    )


@dataclass
class _Tally:
    """Everything counted over the test frames."""

    by_class: dict[str, PixelCounts]
    anything: PixelCounts = field(default_factory=PixelCounts)
    found: dict[str, int] = field(default_factory=dict)
    labelled: dict[str, int] = field(default_factory=dict)
    false_regions: dict[str, int] = field(default_factory=dict)
    defective: int = 0
    escapes: int = 0
    good: int = 0
    overkill: int = 0


def evaluate(
    model: ProbabilityModel,
    frames: Iterable[Frame],
    classes: tuple[str, ...],
    point: OperatingPoint,
    tell: Callable[[Frame, NDArray[np.float32]], None] | None = None,
) -> dict[str, Any]:
    """Judge a model at a fixed operating point on frames that chose nothing.

    Args:
        model: The frozen model.
        frames: The test frames.
        classes: In the order of the model's outputs.
        point: Thresholds and minimum areas.
        tell: Is told each frame and the model's probabilities (K, H, W).

    Returns:
        Pixel Dice and IoU (``any`` counts a pixel of any class), defects found and false regions by
        class, escape and overkill rates by frame with exact 95 % intervals.
    """
    tally = _Tally(by_class={name: PixelCounts() for name in classes})
    frame_count = 0
    for frame in frames:
        frame_count += 1
        probabilities = model.probabilities(frame.pixels)
        _count_frame(tally, probabilities, frame, classes, point)
        if tell is not None:
            tell(frame, probabilities)
    return {
        "frames": frame_count,
        "pixels": {
            "any": tally.anything.scores(),
            **{name: counts.scores() for name, counts in tally.by_class.items()},
        },
        "regions": {
            name: {
                "recall": exact_interval(tally.found.get(name, 0), tally.labelled.get(name, 0)),
                "false_per_frame": tally.false_regions.get(name, 0) / max(frame_count, 1),
            }
            for name in classes
        },
        "escape": exact_interval(tally.escapes, tally.defective),
        "overkill": exact_interval(tally.overkill, tally.good),
    }


def _count_frame(
    tally: _Tally,
    probabilities: NDArray[np.float32],
    frame: Frame,
    classes: tuple[str, ...],
    point: OperatingPoint,
) -> None:
    reported_any = np.zeros(frame.mask.shape[:2], np.bool_)
    for index, name in enumerate(classes):
        chosen = point.classes[name]
        labelled = frame.mask[:, :, index] != 0
        reported = drop_small_regions(probabilities[index] >= chosen.threshold, chosen.min_area_px)
        reported_any |= reported
        tally.by_class[name].add(reported, labelled)
        match = match_regions(reported, labelled)
        for store, amount in (
            (tally.found, sum(area > 0 for area in match.found_by_px)),
            (tally.labelled, len(match.found_by_px)),
            (tally.false_regions, len(match.false_px)),
        ):
            store[name] = store.get(name, 0) + amount
    labelled_any: NDArray[np.bool_] = frame.mask.max(axis=2) != 0
    tally.anything.add(reported_any, labelled_any)
    rejected = bool(reported_any.any())
    if labelled_any.any():
        tally.defective += 1
        tally.escapes += not rejected
    else:
        tally.good += 1
        tally.overkill += rejected


def drop_small_regions(reported: NDArray[np.bool_], min_area_px: int) -> NDArray[np.bool_]:
    """Return the map (H, W) without connected regions smaller than ``min_area_px``."""
    if min_area_px <= 1:
        return reported
    _, ids, stats, _ = cv2.connectedComponentsWithStats(reported.astype(np.uint8), connectivity=8)
    large = stats[:, cv2.CC_STAT_AREA] >= min_area_px
    large[0] = False
    kept: NDArray[np.bool_] = large[ids]
    return kept


def whole_frames(dataset: FrameDataset) -> Iterator[Frame]:
    """Yield a data set's frames one at a time, so that only one is in memory."""
    for index in range(len(dataset)):
        yield dataset.frame(index, epoch=0)
