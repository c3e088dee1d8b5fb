"""Whether two models differ on the same frames: exact and resampling tests of paired counts.

A unit is what was drawn independently: a part, lot or specimen, or a frame where frames were not
grouped.  Counts are arrays (U, M) of int64: units by counts.  Nothing here is random between two
calls: resampling starts from a fixed seed.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]
# Of totals (..., M): the score of each row.
Score = Callable[[NDArray[np.float64]], NDArray[np.float64]]

RESAMPLES = 2000
_SEED = 0
# Rows of resampled totals that are made at a time, so that memory does not grow with the frames.
_ROWS = 200


def rate(totals: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return events / trials of totals (..., 2); no number where there was no trial."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(totals[..., 0] / totals[..., 1])


def dice(totals: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return 2TP / (2TP + FP + FN) of totals (..., 3) of TP, FP and FN."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(2 * totals[..., 0] / (2 * totals[..., 0] + totals[..., 1:].sum(axis=-1)))


def sign_test(differences: Counts) -> float:
    """Return the exact two-sided p-value that differences (U,) are as often in favour as against.

    Under no difference each unit's sign is a fair coin, whatever its size.  The distribution of the
    signed sum is computed, not sampled.  For differences of one in size this is McNemar's exact
    test.
    """
    sizes = np.abs(differences[differences != 0])
    total = int(sizes.sum())
    # Entry s + total is the probability of the sum s.
    chances = np.zeros(2 * total + 1)
    chances[total] = 1.0
    for size in sizes.tolist():
        chances = (np.roll(chances, size) + np.roll(chances, -size)) / 2
    sums = np.arange(-total, total + 1)
    return float(min(1.0, chances[np.abs(sums) >= abs(int(differences.sum()))].sum()))


def swap_test(ours: Counts, theirs: Counts, score: Score) -> float:
    """Return the two-sided p-value of a difference of scores of totals, by swapping units.

    Under no difference each unit's counts could as well be the other model's.  Swaps are sampled;
    the value is (1 + as extreme) / (1 + samples), which is valid for any number of samples.
    """
    found = abs(_difference(ours, theirs, score))
    if np.isnan(found):
        return 1.0
    rng = np.random.default_rng(_SEED)
    extreme = 0
    for start in range(0, RESAMPLES, _ROWS):
        rows = min(_ROWS, RESAMPLES - start)
        swapped = rng.integers(0, 2, (rows, len(ours))).astype(np.float64)
        moved = swapped @ (theirs - ours).astype(np.float64)
        differences = score(ours.sum(axis=0) + moved) - score(theirs.sum(axis=0) - moved)
        extreme += int((np.abs(differences) >= found - 1e-12).sum())
    return (1 + extreme) / (1 + RESAMPLES)


def bootstrap_interval(ours: Counts, theirs: Counts, score: Score) -> tuple[float, float] | None:
    """Return a 95 % interval of the difference of scores, units drawn with replacement.

    None where no unit differs or there is one alone: resampling then has nothing to say.
    """
    units = len(ours)
    if units < 2 or np.array_equal(ours, theirs):
        return None
    rng = np.random.default_rng(_SEED)
    differences: list[NDArray[np.float64]] = []
    for start in range(0, RESAMPLES, _ROWS):
        rows = min(_ROWS, RESAMPLES - start)
        weights = rng.multinomial(units, np.full(units, 1 / units), size=rows).astype(np.float64)
        differences.append(score(weights @ ours) - score(weights @ theirs))
    drawn = np.concatenate(differences)
    drawn = drawn[~np.isnan(drawn)]
    if not drawn.size:
        return None
    low, high = np.quantile(drawn, (0.025, 0.975))
    return float(low), float(high)


def undecided_bound(units: int) -> float:
    """Return how large a share of units may differ, with 95 % confidence, if none of them did."""
    return float(1 - 0.05 ** (1 / units))


def _difference(ours: Counts, theirs: Counts, score: Score) -> float:
    totals = (ours.sum(axis=0).astype(np.float64), theirs.sum(axis=0).astype(np.float64))
    return float(score(totals[0]) - score(totals[1]))
