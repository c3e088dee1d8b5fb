"""Recall by size, in bins that are the data's own quantiles."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from training.region_sizes import LEAST_IN_BIN, MOST_BINS, SizeCounts, edge_px

DEFECTS = st.lists(st.tuples(st.floats(1, 5000), st.booleans()), min_size=1, max_size=120)


def counted(defects: list[tuple[float, bool]]) -> SizeCounts:
    counts = SizeCounts()
    for size_px, found in defects:
        counts.add(np.array([size_px]), np.array([found]))
    return counts


@settings(deadline=None)
@given(DEFECTS)
def test_bins_hold_every_defect_once_and_count_exactly_what_lies_between_their_edges(
    defects: list[tuple[float, bool]],
) -> None:
    bins = counted(defects).recall_by_size()
    assert 1 <= len(bins) <= MOST_BINS
    assert sum(each["recall"]["n"] for each in bins) == len(defects)
    assert sum(each["recall"]["events"] for each in bins) == sum(found for _, found in defects)
    # Edges are edges of the counts' own bins, rounded for the report.
    edges = [edge_px(index) for index in range(300)]
    inner = [min(edges, key=lambda edge: abs(edge - each["below_px"])) for each in bins[:-1]]
    limits = [0.0, *inner, float("inf")]
    for each, low, high in zip(bins, limits, limits[1:], strict=False):
        inside = [found for size, found in defects if low <= size * (1 + 1e-12) < high]
        # A size within rounding of an edge may fall on either side of it.
        near = sum(min(abs(size - low), abs(size - high)) < 1e-6 * size for size, _ in defects)
        assert abs(each["recall"]["n"] - len(inside)) <= near


@settings(deadline=None)
@given(st.lists(st.floats(1, 5000), min_size=4 * LEAST_IN_BIN, max_size=200, unique=True))
def test_many_different_sizes_are_parted_into_quarters(sizes_px: list[float]) -> None:
    bins = counted([(size, True) for size in sizes_px]).recall_by_size()
    assert bins[0]["from_px"] == round(min(sizes_px), 2)
    assert bins[-1]["below_px"] == round(max(sizes_px), 2)
    wanted = len(sizes_px) / MOST_BINS
    spread = np.array(sizes_px)
    crowd = max(int(np.sum((spread >= s / 1.1) & (spread <= s * 1.1))) for s in sizes_px)
    assert all(abs(each["recall"]["n"] - wanted) <= 2 * crowd + 1 for each in bins)


def test_few_defects_share_one_bin_rather_than_many_empty_claims() -> None:
    bins = counted(
        [(float(size), size > 4) for size in range(1, 2 * LEAST_IN_BIN)]
    ).recall_by_size()
    assert len(bins) == 1
    assert bins[0]["recall"]["n"] == 2 * LEAST_IN_BIN - 1


def test_defects_of_one_size_share_a_bin_whatever_their_number() -> None:
    assert len(counted([(9.0, True)] * 200).recall_by_size()) == 1


def test_no_defect_has_no_size() -> None:
    assert SizeCounts().recall_by_size() == []
