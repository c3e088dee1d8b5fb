"""What scores are worth over all thresholds: precision, recall and average precision, streamed.

Scores are counted in bins of equal relative width in min(p, 1 - p), 1/32 of a doubling: a network's
sigmoid crowds at 0 and at 1, where bins of equal width would see one value.  Memory is that of the
bins, whatever the number of frames, and every figure comes with the bounds between which it would
lie without the binning.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

# float32 has 23 bits of mantissa; the five most significant part a doubling into 32 bins.
_DROPPED_BITS = 18
_BINS_A_DOUBLING = 1 << (23 - _DROPPED_BITS)
# Below 2**-24 lies what a float32 sigmoid can't mirror at its upper end.
_SMALLEST = np.float32(2.0**-24)
_FIRST = int(np.asarray(_SMALLEST).view(np.int32)) >> _DROPPED_BITS
_HALF = 23 * _BINS_A_DOUBLING
BIN_COUNT = 2 * _HALF
# Two scores in one bin differ by less than this, relative to the nearer of 0 and 1.
RELATIVE_RESOLUTION = 1 / _BINS_A_DOUBLING

# Points of a curve in the report; more would not show.
CURVE_POINTS = 48


def score_bins(scores: NDArray[np.float32]) -> NDArray[np.int32]:
    """Return each score's bin, 0 to ``BIN_COUNT - 1``; a higher score never has a lower bin.

    Args:
        scores: Any shape, float32 in [0, 1].
    """
    scores = np.asarray(scores, np.float32)
    nearest = np.subtract(np.float32(1), scores, order="C")
    np.minimum(nearest, scores, out=nearest)
    steps: NDArray[np.int32] = nearest.view(np.int32)
    np.right_shift(steps, _DROPPED_BITS, out=steps)
    np.clip(steps, _FIRST, _FIRST + _HALF - 1, out=steps)
    np.subtract(steps, _FIRST, out=steps)
    np.subtract(BIN_COUNT - 1, steps, out=steps, where=scores >= np.float32(0.5))
    return steps


def bin_thresholds() -> NDArray[np.float64]:
    """Return the lower edge of each bin, (BIN_COUNT,): its scores are at least about that."""
    bits = (np.arange(_HALF + 1, dtype=np.int32) + np.int32(_FIRST)) << _DROPPED_BITS
    edges = bits.view(np.float32).astype(np.float64)
    # The upper half mirrors the lower; its first bin begins at a half.
    return np.concatenate([[0.0], edges[1:_HALF], 1 - edges[1:][::-1]])


@dataclass
class ScoreCounts:
    """How many labelled and unlabelled things, pixels or frames, have which score.

    Attributes:
        labelled: (BIN_COUNT,) int64.
        unlabelled: (BIN_COUNT,) int64.
    """

    labelled: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BIN_COUNT, np.int64))
    unlabelled: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BIN_COUNT, np.int64))

    def add(self, bins: NDArray[np.int32], labelled_bins: NDArray[np.int32]) -> None:
        """Count things by their bins.

        Args:
            bins: Of everything, any shape.
            labelled_bins: Of those that are labelled, (N,).
        """
        everything = np.bincount(bins.ravel(), minlength=BIN_COUNT)
        labelled = np.bincount(labelled_bins, minlength=BIN_COUNT)
        self.labelled += labelled
        self.unlabelled += everything - labelled


def average_precision(counts: ScoreCounts) -> dict[str, Any]:
    """Return the average precision, the sum of (R_n - R_(n-1)) P_n over descending thresholds.

    The definition is scikit-learn's, without interpolation, with one threshold a bin.

    Returns:
        ``value``, with ``low`` and ``high`` between which it lies for whatever order the scores
        have within their bins; all None, with a ``reason``, where one kind is missing.
    """
    labelled, unlabelled = counts.labelled[::-1], counts.unlabelled[::-1]
    positives = int(labelled.sum())
    reason = _missing(positives, int(unlabelled.sum()))
    if reason is not None:
        return {"value": None, "low": None, "high": None, "reason": reason}
    used = np.flatnonzero(labelled)
    true, false = np.cumsum(labelled), np.cumsum(unlabelled)
    precision = true[used] / (true[used] + false[used])
    value = float(np.sum(labelled[used] * precision) / positives)
    added, false_before = labelled[used], (false - unlabelled)[used]
    # At best a bin's labelled things share one score above all its others; at worst each of them
    # comes alone, after them.
    high = float(np.sum(added * true[used] / (true[used] + false_before)) / positives)
    low = _one_by_one((true - labelled)[used], added, false[used]) / positives
    return {"value": value, "low": min(low, value), "high": max(high, value), "reason": None}


def _one_by_one(
    before: NDArray[np.int64], added: NDArray[np.int64], false: NDArray[np.int64]
) -> float:
    """Return the sum of precisions when labelled things arrive one by one among ``false`` others.

    That is the sum over j = 1..added of (before + j) / (before + j + false), in closed form.
    """
    from scipy.special import digamma

    start = before + false + 1.0
    harmonic = digamma(start + added) - digamma(start)
    return float(np.sum(added - false * harmonic))


def precision_recall_curve(
    counts: ScoreCounts, most_points: int = CURVE_POINTS
) -> list[dict[str, float]]:
    """Return points of the precision-recall curve, from the highest threshold down.

    Returns:
        ``threshold``, ``recall`` and ``precision``; empty where one kind is missing.  Of a longer
        curve the points nearest to evenly spread recalls are kept, and both its ends.
    """
    labelled, unlabelled = counts.labelled[::-1], counts.unlabelled[::-1]
    positives = int(labelled.sum())
    if _missing(positives, int(unlabelled.sum())) is not None:
        return []
    true, false = np.cumsum(labelled), np.cumsum(unlabelled)
    used = np.flatnonzero(labelled)
    recall = true[used] / positives
    if len(used) > most_points:
        wanted = np.linspace(recall[0], recall[-1], most_points)
        used = used[np.unique(np.searchsorted(recall, wanted).clip(0, len(used) - 1))]
    thresholds = bin_thresholds()[::-1]
    return [
        {
            "threshold": _rounded(thresholds[place]),
            "recall": _rounded(true[place] / positives),
            "precision": _rounded(true[place] / (true[place] + false[place])),
        }
        for place in used
    ]


def count_scores(scores: Sequence[float], labelled: Sequence[bool]) -> ScoreCounts:
    """Return the counts of things that are given one by one."""
    counts = ScoreCounts()
    bins = score_bins(np.asarray(scores, np.float32))
    counts.add(bins, bins[np.asarray(labelled, np.bool_)])
    return counts


def _missing(positives: int, negatives: int) -> str | None:
    if positives == 0:
        return "nothing is labelled"
    # Without anything to confuse a defect with, every precision is 1 and says nothing.
    return "everything is labelled" if negatives == 0 else None


def _rounded(value: Any) -> float:
    return round(float(value), 6)
