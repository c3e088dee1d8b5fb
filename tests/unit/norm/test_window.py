import pytest
import torch

from norm.convolution_moments import mean_response, slope_response
from norm.functional import BatchStatistics, VarianceForm, WindowEstimates, pool
from norm.observation import Iteration
from norm.window import RingWindow


def noisy_iteration(weight: torch.Tensor, seed: int) -> Iteration:
    """Measured statistics with a patch and a slope that have nothing to do with them."""
    generator = torch.Generator().manual_seed(seed)
    patch = torch.randn(2, 3, generator=generator)
    slope = torch.randn(4, 3, generator=generator)
    return Iteration(
        torch.randn(4, generator=generator),
        torch.rand(4, generator=generator),
        10 + seed,
        patch,
        mean_response(patch[None], weight)[0],
        slope,
        slope_response(slope[:, None], weight)[0],
    )


@pytest.mark.parametrize("form", ["centred", "paper"])
@pytest.mark.parametrize("slope_dtype", [None, torch.bfloat16])
def test_an_unchanged_weight_predicts_what_was_measured_whatever_the_slope(
    form: VarianceForm, slope_dtype: torch.dtype | None
) -> None:
    weight = torch.randn(4, 3, 1, 1)
    window = RingWindow(2, weight, groups=2, form=form, slope_dtype=slope_dtype)
    iterations = [noisy_iteration(weight, seed) for seed in range(2)]
    for iteration in iterations:
        window.record(iteration, weight)
    past = window.estimates(weight, None)
    torch.testing.assert_close(past.means, torch.stack([i.mean for i in iterations]))
    torch.testing.assert_close(past.variances, torch.stack([i.variance for i in iterations]))


def test_the_oldest_iteration_is_overwritten_first() -> None:
    weight = torch.randn(4, 3, 1, 1)
    window = RingWindow(3, weight, groups=2)
    assert window.filled == 0
    for seed in range(5):
        window.record(noisy_iteration(weight, seed), weight)
    assert sorted(window.positions.tolist()) == [12, 13, 14]


def test_empty_and_non_finite_entries_have_no_part_in_the_pool() -> None:
    today = BatchStatistics(torch.tensor([1.0]), torch.tensor([2.0]), 10)
    means = torch.tensor([[5.0], [torch.nan], [3.0]])
    variances = torch.tensor([[torch.nan], [1.0], [4.0]])
    pooled = pool(today, WindowEstimates(means, variances, torch.tensor([[0.0], [7.0], [30.0]])))
    # By hand: shares 1/4 and 3/4, mean 2.5, mean variance 3.5, variance of the means 0.75.
    assert pooled.mean.item() == 2.5
    assert pooled.variance.item() == 4.25
    assert pooled.share.item() == 0.25


def test_pooling_does_not_cancel_for_a_mean_far_from_zero() -> None:
    today = BatchStatistics(torch.tensor([1e4]), torch.tensor([1e-3]), 8)
    past = WindowEstimates(torch.tensor([[1e4]]), torch.tensor([[1e-3]]), torch.tensor([[8.0]]))
    # In float32, E[y^2] - E[y]^2 would round to a multiple of 8.
    torch.testing.assert_close(pool(today, past).variance, torch.tensor([1e-3]))
