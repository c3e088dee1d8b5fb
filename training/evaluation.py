"""The frozen model on whole frames: choosing the operating point, then judging it."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from data import Frame, FrameDataset
from models import ClassThreshold, OperatingPoint, Pixels
from training.class_tally import ClassTally, JudgedMap, MapTally
from training.connected_regions import find_regions
from training.errors import TrainingError
from training.gallery import Gallery
from training.judged_regions import offer_false_alarms, offer_misses
from training.metrics import ScoreHistogram
from training.regions import (
    RegionMatch,
    best_min_area,
    match_regions,
)
from training.score_curves import RELATIVE_RESOLUTION
from training.threshold_ladder import Climb, climb
from training.verdict_rates import VerdictCounts

Frames = Callable[[], Iterable[Frame]]
Tell = Callable[[Frame, NDArray[np.float32]], None]


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
    model: ProbabilityModel,
    frames: Frames,
    classes: tuple[str, ...],
    tell: Tell | None = None,
) -> OperatingPoint:
    """Choose each class's threshold by pixel Dice, then its minimum area by the defects found.

    Args:
        model: The frozen model.
        frames: Called twice; gives the calibration frames.
        classes: In the order of the model's outputs.
        tell: Is told each frame once and the model's probabilities (K, H, W).

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
        if tell is not None:
            tell(frame, probabilities)
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


def evaluate(
    model: ProbabilityModel,
    frames: Iterable[Frame],
    classes: tuple[str, ...],
    point: OperatingPoint,
    tell: Tell | None = None,
) -> dict[str, Any]:
    """Judge a model at a fixed operating point on frames that chose nothing, see `judge`."""
    return judge(model, frames, classes, point, gallery=Gallery(limit=0), tell=tell).metrics()


def judge(
    model: ProbabilityModel,
    frames: Iterable[Frame],
    classes: tuple[str, ...],
    point: OperatingPoint,
    *,
    parts: Mapping[str, str] | None = None,
    gallery: Gallery | None = None,
    tell: Tell | None = None,
) -> "Judgement":
    """Ask the model once about each frame and count everything that is reported about it.

    Args:
        model: The frozen model.
        frames: The test frames; one is in memory at a time.
        classes: In the order of the model's outputs.
        point: Chosen on other frames.
        parts: The part of each frame by its name; a frame that is not in it is a part of its own.
        gallery: Receives the worst findings; a new one without it.
        tell: Is told each frame and the model's probabilities (K, H, W).

    Raises:
        TrainingError: A probability is no finite number.
    """
    judgement = Judgement(classes, point, parts or {}, gallery or Gallery())
    for frame in frames:
        began_s = time.perf_counter()
        probabilities = model.probabilities(frame.pixels)
        judgement.model_s += time.perf_counter() - began_s
        judgement.add(frame, probabilities)
        if tell is not None:
            tell(frame, probabilities)
    return judgement


class Judgement:
    """What test frames say of a model at a fixed operating point.

    Memory does not grow with the number of frames, three numbers a part aside.

    Args:
        classes: In the order of the probability maps.
        point: Thresholds and minimum areas.
        parts: The part of each frame by its name.
        gallery: Receives the worst findings.

    Attributes:
        gallery: With its pictures.
        model_s: Seconds that the model took for all frames.
        counting_s: Seconds that counting took.
    """

    def __init__(
        self,
        classes: tuple[str, ...],
        point: OperatingPoint,
        parts: Mapping[str, str],
        gallery: Gallery,
    ) -> None:
        self.gallery = gallery
        self.model_s = 0.0
        self.counting_s = 0.0
        self._point = point
        self._parts = parts
        self._frames = 0
        self._tallies = {name: ClassTally(point.classes[name]) for name in classes}
        self._verdicts = VerdictCounts()
        # Of a single class, "any" is that class: its maps are counted once.
        only = self._tallies[classes[0]].map if len(classes) == 1 else None
        self._anything = only or MapTally()

    def add(self, frame: Frame, probabilities: NDArray[np.float32]) -> None:
        """Count one frame and its probabilities (K, H, W).

        Raises:
            TrainingError: A probability is no finite number.
        """
        began_s = time.perf_counter()
        if not np.isfinite(probabilities).all():
            raise TrainingError(
                "probabilities_not_finite",
                f"the frozen model answers {frame.name} with infinite or no numbers",
                hint="look at that frame; train with precision float32",
            )
        self._frames += 1
        is_good = not frame.mask.any()
        judged = [
            _judge_map(frame, scores, frame.mask[:, :, index] != 0, self._point.classes[name])
            for index, (name, scores) in enumerate(zip(self._tallies, probabilities, strict=True))
        ]
        climbs = [
            climb(each.scores, each.labels, tally.chosen)
            for each, tally in zip(judged, self._tallies.values(), strict=True)
        ]
        names = list(self._tallies)
        for index, (each, climbed) in enumerate(zip(judged, climbs, strict=True)):
            self._tallies[names[index]].add(each, climbed, is_good=is_good)
            offer_misses(self.gallery, names[index], frame, each, climbed)
            offer_false_alarms(self.gallery, names, index, frame, each)
        if len(judged) > 1:
            self._anything.add(_judge_any(judged))
        self._count_verdict(frame.name, climbs, is_good=is_good)
        self.counting_s += time.perf_counter() - began_s

    def _count_verdict(self, name: str, climbs: list[Climb], *, is_good: bool) -> None:
        reached = max(climbed.reached for climbed in climbs)
        part = self._parts.get(name, name)
        self._verdicts.add(part, is_defective=not is_good, reached=reached)

    def metrics(self) -> dict[str, Any]:
        """Return the figures that stay with the model, see ``docs/evaluation.md``."""
        good_frames = int(self._verdicts.frames.good.sum())
        return {
            "frames": self._frames,
            "pixels": {
                "any": self._anything.metrics(),
                **{name: tally.map.metrics() for name, tally in self._tallies.items()},
            },
            "regions": {
                name: tally.region_metrics(self._frames, good_frames)
                for name, tally in self._tallies.items()
            },
            "escape": self._verdicts.frames.escape(),
            "overkill": self._verdicts.frames.overkill(),
            "by_part": self._verdicts.by_part(),
        }

    def details(self) -> dict[str, Any]:
        """Return curves and tables, see ``docs/evaluation.md``."""
        frames = self._verdicts.frames
        good_frames = int(frames.good.sum())
        return {
            "frames": {"defective": int(frames.defective.sum()), "good": good_frames},
            "any": self._anything.details(),
            "classes": {name: tally.details(good_frames) for name, tally in self._tallies.items()},
            "escape_overkill": self._verdicts.curve(self._point),
            "score_resolution": RELATIVE_RESOLUTION,
            "seconds": {"model": round(self.model_s, 3), "counting": round(self.counting_s, 3)},
        }


def _judge_map(
    frame: Frame,
    scores: NDArray[np.float32],
    labelled: NDArray[np.bool_],
    chosen: ClassThreshold,
) -> JudgedMap:
    above = find_regions(scores >= chosen.threshold)
    reports = above.keep(above.areas_px >= chosen.min_area_px)
    return JudgedMap(
        frame=frame.name,
        scores=scores,
        labelled=labelled,
        labels=find_regions(labelled),
        reported=reports.draw(labelled.shape),
        reports=reports,
    )


def _judge_any(judged: list[JudgedMap]) -> JudgedMap:
    """Return the frame seen without regard to class: the highest score, any label, any report."""
    labelled = np.logical_or.reduce([each.labelled for each in judged])
    reported = np.logical_or.reduce([each.reported for each in judged])
    return JudgedMap(
        frame=judged[0].frame,
        scores=np.maximum.reduce([each.scores for each in judged]),
        labelled=labelled,
        labels=find_regions(labelled),
        reported=reported,
        reports=find_regions(reported),
    )


def whole_frames(dataset: FrameDataset) -> Iterator[Frame]:
    """Yield a data set's frames one at a time, so that only one is in memory."""
    for index in range(len(dataset)):
        yield dataset.frame(index, epoch=0)
