"""Defects at a stated rate, evenly, with every frame still seen."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from data.sampling import SamplingSpec, count_epoch, draw_epoch

FRAMES = st.lists(
    st.tuples(st.booleans(), st.sampled_from([(32, 32), (32, 64), (64, 64)])),
    min_size=2,
    max_size=40,
).filter(lambda frames: any(defective for defective, _ in frames))
RATES = st.floats(0.05, 0.95)


@given(FRAMES, RATES, st.booleans(), st.integers(0, 3), st.integers(0, 3))
def test_every_stretch_of_an_epoch_holds_the_rate_within_one_frame(
    frames: list[tuple[bool, tuple[int, int]]], rate: float, windows: bool, seed: int, epoch: int
) -> None:
    defective = [labelled for labelled, _ in frames]
    sizes = [size for _, size in frames]
    draws = draw_epoch(defective, rate, strata=sizes, clean_windows=windows, seed=seed, epoch=epoch)
    good = defective.count(False)
    counts = count_epoch(len(frames) - good, good, rate, clean_windows=windows)
    shown = [draw.wish == "defect" for draw in draws]
    assert (shown.count(True), shown.count(False)) == (counts.defective, counts.clean)
    if good or windows:
        # Of the two kinds the rarer one is rounded to whole showings.
        assert abs(counts.defective - rate * len(shown)) <= 1
    for start in range(0, len(shown), 3):
        for end in range(start + 1, len(shown) + 1):
            stretch = shown[start:end]
            assert abs(stretch.count(True) - counts.defect_rate * len(stretch)) < 1
    assert {draw.index for draw in draws} == set(range(len(frames)))
    assert len({(draw.index, draw.repeat) for draw in draws}) == len(draws)
    if good:
        assert all(defective[draw.index] == (draw.wish == "defect") for draw in draws)


@given(FRAMES, RATES, st.integers(0, 3))
def test_an_epoch_repeats_and_each_epoch_holds_as_many_frames_of_each_size(
    frames: list[tuple[bool, tuple[int, int]]], rate: float, seed: int
) -> None:
    defective = [labelled for labelled, _ in frames]
    sizes = [size for _, size in frames]
    epochs = [
        draw_epoch(defective, rate, strata=sizes, clean_windows=True, seed=seed, epoch=epoch)
        for epoch in (0, 1, 2, 0)
    ]
    assert epochs[0] == epochs[3]
    by_size = [Counter(sizes[draw.index] for draw in draws) for draws in epochs]
    assert by_size[0] == by_size[1] == by_size[2]


def test_frames_of_one_kind_are_shown_equally_often() -> None:
    defective = [True] * 7 + [False] * 100
    draws = draw_epoch(defective, 0.5, strata=[0] * 107, clean_windows=False, seed=0, epoch=0)
    shown = Counter(draw.index for draw in draws)
    assert {shown[index] for index in range(7)} == {14, 15}
    assert {shown[index] for index in range(7, 107)} == {1}


def test_a_rate_that_would_leave_frames_out_is_refused() -> None:
    for rate in (0.0, 1.0):
        with pytest.raises(ValidationError):
            SamplingSpec(defect_rate=rate)
