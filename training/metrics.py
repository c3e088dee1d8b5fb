"""Scores over a data set from streaming counts: memory does not grow with the number of frames."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

# Thresholds are resolved to 0.001; the float32 sigmoid is not the limit, the frames are.
BIN_COUNT = 1000


def dice(true_positive: float, false_positive: float, false_negative: float) -> float | None:
    """Return 2TP / (2TP + FP + FN), or None where nothing is labelled and nothing reported."""
    total = 2 * true_positive + false_positive + false_negative
    return 2 * true_positive / total if total else None


def intersection_over_union(
    true_positive: float, false_positive: float, false_negative: float
) -> float | None:
    """Return TP / (TP + FP + FN), or None where nothing is labelled and nothing reported."""
    total = true_positive + false_positive + false_negative
    return true_positive / total if total else None


@dataclass
class ScoreHistogram:
    """Counts of labelled and unlabelled pixels by score, from which every threshold can be judged.

    Attributes:
        labelled: (bins,) int64.
        unlabelled: (bins,) int64.
    """

    labelled: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BIN_COUNT, np.int64))
    unlabelled: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BIN_COUNT, np.int64))

    def add(self, scores: NDArray[np.float32], target: NDArray[np.uint8]) -> None:
        """Count one map of scores in [0, 1] and its 0/1 target, both (H, W)."""
        bins = np.minimum((scores * BIN_COUNT).astype(np.int32), BIN_COUNT - 1)
        everything = np.bincount(bins.ravel(), minlength=BIN_COUNT)
        labelled = np.bincount(bins[target != 0], minlength=BIN_COUNT)
        self.labelled += labelled
        self.unlabelled += everything - labelled

    def best_dice(self) -> tuple[float | None, float]:
        """Return the highest pixel Dice over all thresholds and the threshold that gives it.

        Without a labelled pixel there is no Dice: (None, 0.5).
        """
        positives = int(self.labelled.sum())
        if positives == 0:
            return None, 0.5
        # Entry t counts the pixels at or above threshold t / BIN_COUNT.
        true_positive = np.cumsum(self.labelled[::-1])[::-1]
        false_positive = np.cumsum(self.unlabelled[::-1])[::-1]
        scores = 2 * true_positive / (true_positive + false_positive + positives)
        # Above a plateau of equal Dice there is nothing to gain and below it nothing to lose: its
        # middle is the choice that stands the most drift.
        best = np.flatnonzero(scores >= scores.max() - 1e-9)
        threshold = int(best[len(best) // 2])
        return float(scores[threshold]), max(threshold, 1) / BIN_COUNT


@dataclass
class PixelCounts:
    """Agreement of reported and labelled pixels."""

    true_positive: int = 0
    false_positive: int = 0
    false_negative: int = 0

    def add(self, reported: NDArray[np.bool_], labelled: NDArray[np.bool_]) -> None:
        """Count one pair of maps."""
        both = int(np.count_nonzero(reported & labelled))
        self.true_positive += both
        self.false_positive += int(np.count_nonzero(reported)) - both
        self.false_negative += int(np.count_nonzero(labelled)) - both

    def merge(self, others: "PixelCounts") -> None:
        """Add counts of other maps."""
        self.true_positive += others.true_positive
        self.false_positive += others.false_positive
        self.false_negative += others.false_negative

    def scores(self) -> dict[str, float | None]:
        """Return Dice and IoU over everything counted."""
        counts = (self.true_positive, self.false_positive, self.false_negative)
        return {"dice": dice(*counts), "iou": intersection_over_union(*counts)}
