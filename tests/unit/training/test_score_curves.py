"""Precision, recall and average precision from bins of scores."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.oracles import exact_scores
from training.score_curves import (
    BIN_COUNT,
    RELATIVE_RESOLUTION,
    ScoreCounts,
    average_precision,
    bin_thresholds,
    count_scores,
    precision_recall_curve,
    score_bins,
)

# Sigmoids crowd at both ends, so the tests' scores do as well.
ENDS = st.floats(0, 1, width=32) | st.floats(0, 2.0**-20, width=32)
SCORES = hnp.arrays(np.float32, st.integers(2, 60), elements=ENDS | ENDS.map(lambda p: 1 - p))
LABELS = st.randoms(use_true_random=False)


def labels_of(random: object, count: int) -> np.ndarray:
    return np.array([random.random() < 0.4 for _ in range(count)], np.bool_)  # type: ignore[attr-defined]


@settings(deadline=None)
@given(SCORES)
def test_a_higher_score_never_has_a_lower_bin(scores: np.ndarray) -> None:
    ordered = np.sort(scores)
    bins = score_bins(ordered)
    assert np.all(np.diff(bins) >= 0)
    assert bins.min() >= 0
    assert bins.max() < BIN_COUNT


def test_scores_of_one_bin_differ_by_less_than_the_stated_resolution() -> None:
    edges = bin_thresholds()
    assert len(edges) == BIN_COUNT
    assert np.all(np.diff(edges) > 0)
    # Distances from the nearer of 0 and 1 grow up to a half and shrink beyond it.
    nearest = np.minimum(edges, 1 - edges)[1:-1]
    least = np.minimum(nearest, np.append(nearest[1:], 1 - edges[-1]))
    assert np.all(np.diff(edges)[1:] <= least * RELATIVE_RESOLUTION * 1.0001)


@settings(deadline=None)
@given(SCORES)
def test_a_score_lies_in_the_bin_whose_edges_enclose_it(scores: np.ndarray) -> None:
    edges = np.append(bin_thresholds(), 1.0)
    bins = score_bins(scores)
    assert np.all(edges[bins] <= scores.astype(np.float64) + 1e-7)
    assert np.all(scores <= edges[bins + 1] + 1e-7)


@settings(deadline=None)
@given(SCORES, LABELS)
def test_the_exact_average_precision_lies_between_the_stated_bounds(
    scores: np.ndarray, random: object
) -> None:
    labelled = labels_of(random, len(scores))
    counts = ScoreCounts()
    bins = score_bins(scores)
    counts.add(bins, bins[labelled])
    found = average_precision(counts)
    if not labelled.any() or labelled.all():
        assert found["value"] is None
        assert found["reason"] in {"nothing is labelled", "everything is labelled"}
        assert precision_recall_curve(counts) == []
        return
    exact = exact_scores.average_precision(scores.astype(np.float64), labelled)
    assert found["low"] - 1e-9 <= exact <= found["high"] + 1e-9
    binned = exact_scores.average_precision(bins.astype(np.float64), labelled)
    assert found["value"] == pytest.approx(binned)


@settings(deadline=None)
@given(SCORES, LABELS)
def test_every_point_of_the_curve_is_reached_at_its_threshold(
    scores: np.ndarray, random: object
) -> None:
    labelled = labels_of(random, len(scores))
    counts = count_scores(scores.tolist(), labelled.tolist())
    bins = score_bins(scores)
    edges = bin_thresholds()
    for point in precision_recall_curve(counts):
        above = bins >= int(np.argmin(np.abs(edges - point["threshold"])))
        # Thresholds are rounded for the report; near 0 and 1 several bins share a number.
        candidates = [above] + [bins >= b for b in np.unique(bins)]
        pairs = [
            (np.sum(labelled & each) / labelled.sum(), np.sum(labelled & each) / each.sum())
            for each in candidates
            if each.any()
        ]
        assert any(
            abs(r - point["recall"]) < 1e-5 and abs(p - point["precision"]) < 1e-5 for r, p in pairs
        )


def test_a_long_curve_is_thinned_and_keeps_its_ends() -> None:
    rng = np.random.default_rng(0)
    labelled = rng.random(5000) < 0.3
    scores = np.where(labelled, rng.beta(4, 2, 5000), rng.beta(2, 4, 5000))
    counts = count_scores(scores.tolist(), labelled.tolist())
    whole = precision_recall_curve(counts, most_points=10_000)
    thin = precision_recall_curve(counts, most_points=20)
    assert len(thin) <= 20 < len(whole)
    assert (thin[0], thin[-1]) == (whole[0], whole[-1])
