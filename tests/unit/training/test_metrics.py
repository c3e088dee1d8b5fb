"""Scores from streaming counts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import binom

from models.certificate import exact_interval
from training.metrics import BIN_COUNT, PixelCounts, ScoreHistogram

MAPS = hnp.arrays(np.float32, (12, 9), elements=st.floats(0, 1, width=32))
TARGETS = hnp.arrays(np.uint8, (12, 9), elements=st.integers(0, 1))


@given(MAPS, TARGETS)
def test_no_threshold_gives_a_better_dice_than_the_one_chosen(
    scores: np.ndarray, target: np.ndarray
) -> None:
    histogram = ScoreHistogram()
    histogram.add(scores, target)
    best, threshold = histogram.best_dice()
    if best is None:
        assert not target.any()
        return

    def dice_at(value: float) -> float:
        counts = PixelCounts()
        counts.add(scores >= value, target != 0)
        return counts.scores()["dice"] or 0.0

    every = [dice_at(index / BIN_COUNT) for index in range(BIN_COUNT)]
    # A score within float32 rounding of a bin's edge may fall on either side of it, so the
    # reference looks at the chosen threshold's neighbours as well.
    assert best <= max(every) + 1e-6
    assert best >= dice_at(0.5) - 1e-6 or np.isclose(scores, 0.5).any()
    assert 0 < threshold < 1


@given(st.lists(st.tuples(MAPS, TARGETS), min_size=1, max_size=4))
def test_frames_counted_one_by_one_equal_frames_counted_together(
    frames: list[tuple[np.ndarray, np.ndarray]],
) -> None:
    one_by_one, together = ScoreHistogram(), ScoreHistogram()
    for scores, target in frames:
        one_by_one.add(scores, target)
    together.add(
        np.concatenate([scores for scores, _ in frames]),
        np.concatenate([target for _, target in frames]),
    )
    assert np.array_equal(one_by_one.labelled, together.labelled)
    assert np.array_equal(one_by_one.unlabelled, together.unlabelled)


def test_nothing_labelled_is_no_score_rather_than_a_perfect_one() -> None:
    histogram = ScoreHistogram()
    histogram.add(np.zeros((4, 4), np.float32), np.zeros((4, 4), np.uint8))
    assert histogram.best_dice() == (None, 0.5)
    assert PixelCounts().scores() == {"dice": None, "iou": None}


def test_zero_misses_still_have_an_upper_bound() -> None:
    interval = exact_interval(0, 100)
    assert interval["rate"] == 0
    assert interval["low"] == 0
    # Clopper-Pearson in closed form for no event: 1 - (alpha / 2) ** (1 / n).
    assert interval["high"] == pytest.approx(1 - 0.025 ** (1 / 100))


@settings(deadline=None)
@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_is_clopper_and_pearsons(counts: tuple[int, int]) -> None:
    events, trials = counts
    interval = exact_interval(events, trials)
    # Below the lower bound so many events, above the upper one so few, have 2.5 % at most.
    if events:
        assert binom.sf(events - 1, trials, interval["low"]) == pytest.approx(0.025)
    if events < trials:
        assert binom.cdf(events, trials, interval["high"]) == pytest.approx(0.025)
    assert interval["low"] <= interval["rate"] <= interval["high"]


def test_no_trials_are_no_rate() -> None:
    assert exact_interval(0, 0)["rate"] is None
