"""A window that today's statistics contradict is shortened, channel by channel."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from norm import CrossIterationBatchNorm2d
from norm.functional import BatchStatistics, WindowEstimates, trust

EPS = 1e-5


def window(means: list[float], variances: list[float]) -> WindowEstimates:
    """One channel, one past iteration a value."""
    column = torch.tensor(means, dtype=torch.float64)[:, None]
    return WindowEstimates(
        column, torch.tensor(variances, dtype=torch.float64)[:, None], torch.full_like(column, 50.0)
    )


def today(positions: int = 50) -> BatchStatistics:
    """Mean 10, deviation 2."""
    one = torch.ones(1, dtype=torch.float64)
    return BatchStatistics(10 * one, 4 * one, positions)


def kept(past: WindowEstimates, d_max: float, r_max: float, positions: int = 50) -> list[bool]:
    trusted = trust(today(positions), past, d_max=d_max, r_max=r_max, eps=EPS)
    assert torch.equal(trusted.means, past.means)
    return (trusted.weights[:, 0] > 0).tolist()


def test_means_are_judged_in_todays_deviations_and_deviations_by_their_ratio() -> None:
    past = window([10, 11.9, 12.1, 8.1, 7.9], [4.0] * 5)
    assert kept(past, 1.0, 2.0) == [True, True, False, True, False]
    past = window([10.0] * 4, [15.9, 16.1, 1.01, 0.99])
    assert kept(past, 1.0, 2.0) == [True, False, True, False]


@given(
    st.lists(st.tuples(st.floats(-100, 100), st.floats(0, 100)), min_size=1, max_size=5),
    st.floats(0, 3),
    st.floats(1, 3),
)
def test_wider_bounds_never_leave_out_more_and_infinite_ones_nothing(
    past: list[tuple[float, float]], d_max: float, r_max: float
) -> None:
    estimates = window([mean for mean, _ in past], [variance for _, variance in past])
    narrow = kept(estimates, d_max, r_max)
    wide = kept(estimates, d_max + 1, r_max + 1)
    assert all(after for before, after in zip(narrow, wide, strict=True) if before)
    assert all(kept(estimates, math.inf, math.inf))


def test_a_single_value_has_no_deviation_to_judge_by() -> None:
    assert kept(window([500.0], [9.0]), 1.0, 2.0, positions=1) == [True]


@pytest.mark.parametrize("bounds", [{}, {"d_max": math.inf, "r_max": math.inf}])
def test_under_a_contradicted_window_the_layer_is_batch_normalization(
    bounds: dict[str, Any],
) -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(2, 3, 3)
    layer = CrossIterationBatchNorm2d(3, window_size=4, **bounds).bind(convolution)
    for _ in range(3):
        layer(convolution(torch.randn(2, 2, 6, 6)))
    # The layer's own weight stands still: no Taylor step can see what changed before it.
    y = convolution(100 * torch.randn(2, 2, 6, 6) + 1000)
    difference = float((layer(y) - nn.BatchNorm2d(3)(y)).detach().abs().max())
    if bounds:
        assert difference > 0.1, "without bounds the old window still has its say"
    else:
        assert difference < 1e-5
