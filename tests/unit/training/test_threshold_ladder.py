"""Each rung says what serving would say with its threshold."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from models import ClassThreshold, OperatingPoint
from models.defects import find_defects
from training.connected_regions import find_regions
from training.regions import drop_small_regions, match_regions
from training.threshold_ladder import (
    CHOSEN_RUNG,
    LEAST_LABELLED_SHARE,
    OFFSETS,
    climb,
    ladder_thresholds,
)

COARSE = hnp.arrays(np.float32, (6, 7), elements=st.floats(-9, 9, width=32))


def smooth(logits: np.ndarray) -> np.ndarray:
    """Scores in blobs, over a map several times as large with empty stretches in it."""
    large = np.full((40, 44), -12, np.float32)
    large[6:24, 8:29] = np.kron(logits, np.ones((3, 3), np.float32))
    scores: np.ndarray = 1 / (1 + np.exp(-large))
    return scores


@settings(max_examples=60, deadline=None)
@given(COARSE, hnp.arrays(np.bool_, (40, 44)), st.floats(0.01, 0.99), st.integers(1, 40))
def test_every_rung_is_the_verdict_at_its_threshold(
    logits: np.ndarray, speckles: np.ndarray, threshold: float, min_area_px: int
) -> None:
    scores = smooth(logits)
    labelled = speckles & (np.indices(speckles.shape).sum(axis=0) % 7 < 3)
    found = climb(
        scores,
        find_regions(labelled),
        ClassThreshold(threshold=threshold, min_area_px=min_area_px),
    )
    labels = find_regions(labelled)
    for rung, value in enumerate(ladder_thresholds(threshold)):
        chosen = ClassThreshold(threshold=value, min_area_px=min_area_px)
        served, _ = find_defects(scores[None], ("pit",), OperatingPoint(classes={"pit": chosen}))
        assert (found.reached > rung) == bool(served)
        reported = drop_small_regions(scores >= value, min_area_px)
        match = match_regions(reported, labelled)
        assert found.false_regions[rung] == len(match.false_px)
        touched = np.zeros(len(labels.areas_px), np.bool_)
        touched[labels.region_of_pixel[reported.ravel()[labels.pixels]]] = True
        assert np.array_equal(found.found_at > rung, touched)
        assert touched.sum() == sum(area > 0 for area in match.found_by_px)
        pointing = find_regions(reported)
        share = np.bincount(
            pointing.region_of_pixel,
            weights=labelled.ravel()[pointing.pixels],
            minlength=len(pointing.areas_px),
        )
        kept = pointing.keep(share / pointing.areas_px >= LEAST_LABELLED_SHARE).draw(labelled.shape)
        located = match_regions(kept, labelled)
        assert found.located[rung] == sum(area > 0 for area in located.found_by_px)


@settings(deadline=None)
@given(st.floats(0, 1))
def test_rungs_rise_around_the_chosen_threshold_itself(threshold: float) -> None:
    rungs = ladder_thresholds(threshold)
    assert len(rungs) == len(OFFSETS)
    assert rungs[CHOSEN_RUNG] == threshold
    beside = [*rungs[:CHOSEN_RUNG], *rungs[CHOSEN_RUNG + 1 :]]
    assert beside == sorted(beside)
    assert all(0 < rung < 1 for rung in beside)
