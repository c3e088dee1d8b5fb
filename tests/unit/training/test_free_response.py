"""Recall at a fixed number of false regions on good frames."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from training.free_response import FALSE_REGIONS_A_FRAME, free_response
from training.threshold_ladder import OFFSETS

RUNGS = len(OFFSETS)
LOCATED = st.lists(st.integers(0, 12), min_size=RUNGS, max_size=RUNGS)
FALSE = st.lists(st.integers(0, 40), min_size=RUNGS, max_size=RUNGS)


@settings(deadline=None)
@given(LOCATED, FALSE, st.integers(1, 10))
def test_the_recall_is_the_best_of_all_rungs_that_neither_report_more_nor_lie_below_one_that_does(
    located: list[int], false: list[int], good_frames: int
) -> None:
    answer = free_response(np.array(located), 12, np.array(false), good_frames, 0.5)
    for allowed, entry in zip(FALSE_REGIONS_A_FRAME, answer["at"], strict=True):
        suitable = [
            located[rung]
            for rung in range(RUNGS)
            if all(count / good_frames <= allowed for count in false[rung:])
        ]
        if not suitable:
            assert entry["recall"] is None
            continue
        assert entry["recall"]["events"] == max(suitable)
        assert entry["recall"]["n"] == 12


def test_false_regions_that_grow_together_are_not_fewer() -> None:
    # From the top down: specks, more specks, one region over the whole frame.
    false = np.array([1, 90, 8, *[0] * (RUNGS - 3)])
    located = np.array([12, 11, 10, *[3] * (RUNGS - 3)])
    answer = free_response(located, 12, false, 10, 0.5)
    recalls = [entry["recall"]["events"] for entry in answer["at"]]
    assert recalls == [3, 3, 3, 10, 10, 10]


def test_without_good_frames_false_regions_have_no_denominator() -> None:
    some, nothing = np.full(RUNGS, 2), np.zeros(RUNGS, np.int64)
    assert free_response(some, 2, nothing, 0, 0.5)["reason"] == "no frame is good"
    assert free_response(nothing, 0, nothing, 4, 0.5)["reason"] == "no frame shows this class"
    assert free_response(some, 2, nothing, 0, 0.5)["at"] == []
