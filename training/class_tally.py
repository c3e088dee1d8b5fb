"""Everything counted over the test frames for one class, or for defects of any class."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models import ClassThreshold
from models.certificate import exact_interval
from training.connected_regions import Regions
from training.frame_scores import FrameScores
from training.free_response import free_response
from training.metrics import PixelCounts
from training.region_overlap import RegionOverlap
from training.region_sizes import MOST_CURVE_BINS, SizeCounts
from training.score_curves import (
    ScoreCounts,
    average_precision,
    precision_recall_curve,
    score_bins,
)
from training.threshold_ladder import CHOSEN_RUNG, OFFSETS, Climb


@dataclass(frozen=True)
class JudgedMap:
    """What was found and what is labelled in one frame, of one class or of any.

    Attributes:
        frame: The frame's name.
        scores: (H, W) float32 probabilities.
        labelled: (H, W).
        labels: Its connected regions.
        reported: (H, W), at the operating point, small regions dropped.
        reports: Its connected regions.
    """

    frame: str
    scores: NDArray[np.float32]
    labelled: NDArray[np.bool_]
    labels: Regions
    reported: NDArray[np.bool_]
    reports: Regions


@dataclass
class MapTally:
    """Counts by pixel and by frame."""

    pixels: PixelCounts = field(default_factory=PixelCounts)
    pixel_scores: ScoreCounts = field(default_factory=ScoreCounts)
    frame_scores: ScoreCounts = field(default_factory=ScoreCounts)
    overlap: RegionOverlap = field(default_factory=RegionOverlap)
    frame_dice: FrameScores = field(default_factory=FrameScores)

    def add(self, judged: JudgedMap) -> None:
        """Count one frame."""
        counts = PixelCounts()
        counts.add(judged.reported, judged.labelled)
        self.pixels.merge(counts)
        bins = score_bins(judged.scores)
        labelled_bins = bins.ravel()[judged.labels.pixels]
        self.pixel_scores.add(bins, labelled_bins)
        self.overlap.add(labelled_bins, judged.labels.region_of_pixel, judged.labels.areas_px)
        # A frame's score is its highest pixel's.
        highest = bins.max(keepdims=True).ravel()
        is_labelled = len(judged.labels.pixels) > 0
        self.frame_scores.add(highest, highest if is_labelled else highest[:0])
        dice = counts.scores()["dice"]
        if is_labelled and dice is not None:
            self.frame_dice.add(dice, judged.frame)

    def metrics(self) -> dict[str, Any]:
        """Return the scores by pixel, one number each."""
        return {
            **self.pixels.scores(),
            "average_precision": average_precision(self.pixel_scores)["value"],
            "aupro": self.overlap.score(self.pixel_scores.unlabelled)["value"],
        }

    def details(self) -> dict[str, Any]:
        """Return curves, and the scores with the bounds of their resolution."""
        return {
            "pixel_average_precision": average_precision(self.pixel_scores),
            "pixel_precision_recall": precision_recall_curve(self.pixel_scores),
            "frame_average_precision": average_precision(self.frame_scores),
            "frame_precision_recall": precision_recall_curve(self.frame_scores),
            "aupro": self.overlap.score(self.pixel_scores.unlabelled),
            "frame_dice": self.frame_dice.summary(),
        }


@dataclass
class ClassTally:
    """One class: its map, its labelled defects and its false regions."""

    chosen: ClassThreshold
    map: MapTally = field(default_factory=MapTally)
    by_area: SizeCounts = field(default_factory=SizeCounts)
    by_short_side: SizeCounts = field(default_factory=SizeCounts)
    found_at: NDArray[np.int64] = field(
        default_factory=lambda: np.zeros(len(OFFSETS) + 1, np.int64)
    )
    located: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(OFFSETS), np.int64))
    false_regions: int = 0
    false_on_good: NDArray[np.int64] = field(
        default_factory=lambda: np.zeros(len(OFFSETS), np.int64)
    )

    def add(self, judged: JudgedMap, climbed: Climb, *, is_good: bool) -> None:
        """Count one frame; ``is_good`` if no class is labelled in it."""
        self.map.add(judged)
        found = climbed.found_at > CHOSEN_RUNG
        self.by_area.add(judged.labels.areas_px, found)
        sides = judged.labels.short_sides_px(judged.labelled.shape[1])
        self.by_short_side.add(sides, found)
        self.found_at += np.bincount(climbed.found_at, minlength=len(OFFSETS) + 1)
        self.located += climbed.located
        self.false_regions += int(climbed.false_regions[CHOSEN_RUNG])
        if is_good:
            self.false_on_good += climbed.false_regions

    def region_metrics(self, frames: int, good_frames: int) -> dict[str, Any]:
        """Return recall of labelled defects and false regions at the operating point."""
        found = int(self.found_at[CHOSEN_RUNG + 1 :].sum())
        on_good = int(self.false_on_good[CHOSEN_RUNG])
        return {
            "recall": exact_interval(found, int(self.found_at.sum())),
            "false_per_frame": self.false_regions / max(frames, 1),
            "false_per_good_frame": on_good / good_frames if good_frames else None,
        }

    def details(self, good_frames: int) -> dict[str, Any]:
        """Return the map's details, recall by size and the free-response curve."""
        return {
            **self.map.details(),
            "recall_by_area": self.by_area.recall_by_size(),
            "recall_by_short_side": self.by_short_side.recall_by_size(),
            "detection_by_short_side": self.by_short_side.recall_by_size(MOST_CURVE_BINS),
            "free_response": free_response(
                self.located,
                int(self.found_at.sum()),
                self.false_on_good,
                good_frames,
                self.chosen.threshold,
            ),
        }
