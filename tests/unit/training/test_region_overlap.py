"""AUPRO from bins of scores against the curve over every distinct score."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.oracles.exact_scores import per_region_overlap_area
from training.connected_regions import find_regions
from training.region_overlap import FALSE_POSITIVE_LIMIT, RegionOverlap
from training.score_curves import ScoreCounts, score_bins

MAP = st.tuples(
    hnp.arrays(np.float32, (7, 8), elements=st.floats(0, 1, width=32)),
    hnp.arrays(np.bool_, (7, 8), elements=st.booleans()),
)


def overlap_of(maps: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    overlap, counts = RegionOverlap(), ScoreCounts()
    for scores, labelled in maps:
        regions, bins = find_regions(labelled), score_bins(scores)
        labelled_bins = bins.ravel()[regions.pixels]
        counts.add(bins, labelled_bins)
        overlap.add(labelled_bins, regions.region_of_pixel, regions.areas_px)
    return overlap.score(counts.unlabelled)


@settings(deadline=None)
@given(st.lists(MAP, min_size=1, max_size=3))
def test_the_exact_area_lies_within_the_stated_error(
    maps: list[tuple[np.ndarray, np.ndarray]],
) -> None:
    found = overlap_of(maps)
    labelled = np.concatenate([each.ravel() for _, each in maps])
    if not labelled.any() or labelled.all():
        assert found["value"] is None
        return
    exact = per_region_overlap_area(maps, FALSE_POSITIVE_LIMIT)
    assert abs(found["value"] - exact) <= found["resolution_error"] + 1e-9


def test_on_many_pixels_the_binning_hardly_shows() -> None:
    rng = np.random.default_rng(1)
    labelled = np.zeros((80, 80), np.bool_)
    labelled[10:20, 10:40] = labelled[50:53, 50:53] = True
    noise = rng.normal(-4, 1.5, labelled.shape) + 4 * labelled
    scores = (1 / (1 + np.exp(-noise))).astype(np.float32)
    found = overlap_of([(scores, labelled)])
    assert found["resolution_error"] < 0.01
    exact = per_region_overlap_area([(scores, labelled)], FALSE_POSITIVE_LIMIT)
    assert found["value"] == pytest.approx(exact, abs=0.01)


def test_a_small_defect_weighs_as_much_as_a_large_one() -> None:
    labelled = np.zeros((20, 20), np.bool_)
    labelled[2:12, 2:12] = labelled[16, 16] = True
    scores = np.where(labelled, 0.9, 0.1).astype(np.float32)
    assert overlap_of([(scores, labelled)])["value"] == 1
    scores[16, 16] = 0.01
    # The large one is covered throughout, the single pixel only when everything is.
    assert overlap_of([(scores, labelled)])["value"] == pytest.approx(0.5, abs=0.09)
