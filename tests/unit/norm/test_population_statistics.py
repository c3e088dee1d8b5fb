import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from norm.population_statistics import (
    PIECE_VALUES,
    RunningStatistics,
    _pieces,
    change_in_deviations,
    exact_statistics,
    pool_pair,
)


def values(channels: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    spread = torch.rand(channels, dtype=torch.float64, generator=generator) + 0.5
    y = torch.randn(*shape, channels, dtype=torch.float64, generator=generator) * spread + spread
    return y.movedim(-1, 1)


@given(sizes=st.lists(st.integers(1, 7), min_size=2, max_size=6))
@settings(deadline=None, max_examples=25)
def test_pooling_does_not_depend_on_how_values_are_split(sizes: list[int]) -> None:
    y = values(3, sum(sizes), 2, 5)
    parts = [exact_statistics(part) for part in torch.split(y, sizes)]
    pooled = parts[0]
    for part in parts[1:]:
        pooled = pool_pair(pooled, part)
    variance, mean = torch.var_mean(y, (0, 2, 3), correction=0)
    # Sums of at most a few hundred values around 1, in float64.
    torch.testing.assert_close(pooled.mean, mean, rtol=0, atol=1e-14)
    torch.testing.assert_close(pooled.variance, variance, rtol=0, atol=1e-14)
    assert pooled.positions == y.numel() // 3


def test_a_map_that_is_taken_in_pieces_keeps_all_digits() -> None:
    y = values(4, 2, 600, 700).float().contiguous(memory_format=torch.channels_last)
    assert y[0].numel() > PIECE_VALUES >= max(piece.numel() for piece in _pieces(y))
    found = exact_statistics(y)
    variance, mean = torch.var_mean(y.double(), (0, 2, 3), correction=0)
    # Both are float64 sums over 840,000 positions; a float32 sum is wrong by 1e-7 at best.
    torch.testing.assert_close(found.mean, mean, rtol=1e-12, atol=0)
    torch.testing.assert_close(found.variance, variance, rtol=1e-12, atol=0)


def test_a_large_mean_does_not_drown_the_variance() -> None:
    y = values(2, 4, 16, 16)
    expected = exact_statistics(y).variance
    found = exact_statistics(y + 1e6).variance
    # Values of 1e6 are rounded to 1e-10 in float64; E[y^2] - E[y]^2 would be wrong by 1e-4.
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_inputs_without_rows_are_taken_as_they_are() -> None:
    y = values(3, 8)
    found = exact_statistics(y)
    torch.testing.assert_close(found.mean, y.mean(0))
    assert found.positions == 8


def test_a_change_is_measured_in_what_the_layer_divides_by() -> None:
    old = RunningStatistics(torch.tensor([0.0, 1.0]), torch.tensor([3.0, 0.0]))
    new = RunningStatistics(torch.tensor([1.0, 1.0]), torch.tensor([3.0, 3.0]))
    assert change_in_deviations(old, old, 1.0) == 0
    assert change_in_deviations(old, new, 1.0) == 0.5


def test_what_is_no_number_has_changed_without_bound() -> None:
    right = RunningStatistics(torch.zeros(2), torch.ones(2))
    for wrong in (
        RunningStatistics(torch.tensor([0.0, math.nan]), torch.ones(2)),
        RunningStatistics(torch.zeros(2), torch.tensor([math.inf, 1.0])),
        RunningStatistics(torch.zeros(2), torch.tensor([-1.0, 1.0])),
    ):
        assert change_in_deviations(wrong, right, 1e-5) == math.inf
        assert change_in_deviations(right, wrong, 1e-5) == math.inf


def test_a_constant_channel_without_eps_has_not_changed() -> None:
    constant = RunningStatistics(torch.ones(1), torch.zeros(1))
    assert change_in_deviations(constant, constant, 0.0) == 0
