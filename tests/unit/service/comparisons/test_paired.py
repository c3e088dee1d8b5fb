"""Paired tests agree with the textbook where it has an answer, and never see what is not there."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from service.comparisons.paired import (
    bootstrap_interval,
    dice,
    rate,
    sign_test,
    swap_test,
    undecided_bound,
)


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 10))
def test_with_one_verdict_a_unit_it_is_mcnemars_exact_test(
    ours: int, theirs: int, equal: int
) -> None:
    differences = np.array([1] * ours + [-1] * theirs + [0] * equal, np.int64)
    expected = binomtest(ours, ours + theirs, 0.5).pvalue if ours + theirs else 1.0
    assert sign_test(differences) == pytest.approx(expected, abs=1e-12)


@given(st.lists(st.integers(-4, 4), max_size=9))
def test_several_verdicts_a_unit_count_as_one_coin(differences: list[int]) -> None:
    found = abs(sum(differences))
    sums = [
        abs(sum(sign * size for sign, size in zip(signs, differences, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    expected = sum(each >= found for each in sums) / len(sums)
    assert sign_test(np.array(differences, np.int64)) == pytest.approx(expected)


def test_defects_of_one_part_are_no_independent_evidence() -> None:
    apart, together = np.ones(10, np.int64), np.array([10], np.int64)
    assert sign_test(apart) < 0.01
    assert sign_test(together) == 1.0


@settings(max_examples=20)
@given(st.lists(st.tuples(*[st.integers(0, 50)] * 3), min_size=2, max_size=12))
def test_a_model_does_not_differ_from_itself(units: list[tuple[int, int, int]]) -> None:
    counts = np.array(units, np.int64)
    assert swap_test(counts, counts, dice) == 1.0
    assert bootstrap_interval(counts, counts, dice) is None


def test_a_clear_difference_of_dice_is_shown_with_its_size_and_sign() -> None:
    rng = np.random.default_rng(1)
    truth = rng.integers(40, 60, 30)
    better = np.column_stack([truth, np.full(30, 5), np.full(30, 5)])
    worse = np.column_stack([truth // 2, np.full(30, 5), 5 + truth - truth // 2])
    assert swap_test(better, worse, dice) < 0.001
    interval = bootstrap_interval(better, worse, dice)
    assert interval is not None
    difference = dice(better.sum(axis=0)) - dice(worse.sum(axis=0))
    assert 0 < interval[0] < difference < interval[1]
    other_way = bootstrap_interval(worse, better, dice)
    assert other_way is not None
    assert other_way == pytest.approx((-interval[1], -interval[0]))


def test_no_trial_is_no_number_and_no_verdict() -> None:
    nothing = np.zeros((5, 2), np.int64)
    assert np.isnan(rate(nothing.sum(axis=0)))
    assert swap_test(nothing, nothing, rate) == 1.0


def test_no_difference_in_a_few_frames_still_bounds_little() -> None:
    # The rule of three: about 3 / n.
    assert undecided_bound(300) == pytest.approx(3 / 300, rel=0.01)
    assert undecided_bound(1) == pytest.approx(0.95)
