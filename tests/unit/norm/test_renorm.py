from typing import Any

import pytest
import torch
from torch import Tensor, nn

from norm import BatchRenorm2d, OptionError
from norm.renorm import correction_limits


@pytest.mark.parametrize(
    ("step", "r_max", "d_max"),
    [(0, 1, 0), (5_000, 1, 0), (15_000, 11 / 7, 2.5), (25_000, 15 / 7, 5), (40_000, 3, 5)],
)
def test_schedule_is_the_papers_in_a_job_of_160000_steps(
    step: int, r_max: float, d_max: float
) -> None:
    limits = correction_limits(torch.tensor(step), total_steps=160_000, r_max=3, d_max=5)
    torch.testing.assert_close(
        torch.stack(limits), torch.tensor([r_max, d_max], dtype=torch.float32)
    )


def renormed(y: Tensor, layer: BatchRenorm2d, r_max: float, d_max: float) -> Tensor:
    """Algorithm 1 of arXiv 1702.03275, by autograd."""
    assert layer.running_mean is not None
    assert layer.running_var is not None
    mean, variance = y.mean((0, 2, 3)), y.var((0, 2, 3), correction=0)
    deviation, running = (variance + layer.eps).sqrt(), (layer.running_var + layer.eps).sqrt()
    r = (deviation / running).clamp(1 / r_max, r_max).detach()
    d = ((mean - layer.running_mean) / running).clamp(-d_max, d_max).detach()
    columns = [v.view(1, -1, 1, 1) for v in (mean, deviation, r, d, layer.weight, layer.bias)]
    output: Tensor = ((y - columns[0]) / columns[1] * columns[2] + columns[3]) * columns[
        4
    ] + columns[5]
    return output


def trained_layer() -> tuple[BatchRenorm2d, Tensor]:
    torch.manual_seed(0)
    layer = BatchRenorm2d(4, total_steps=1, r_max=1.5, d_max=0.5).double()
    nn.init.normal_(layer.weight)
    # One channel near its running statistics, the others beyond each of the bounds.
    layer.running_mean = torch.tensor([0.1, 3.0, -3.0, 0.0], dtype=torch.float64)
    layer.running_var = torch.tensor([1.1, 9.0, 0.1, 1.0], dtype=torch.float64)
    layer.optimizer_steps.steps.fill_(1)
    return layer, torch.randn(2, 4, 5, 5, dtype=torch.float64, requires_grad=True)


def test_output_and_gradients_match_algorithm_1() -> None:
    layer, y = trained_layer()
    expected = renormed(y, layer, 1.5, 0.5)
    output = layer(y)
    direction = torch.randn_like(y)
    leaves = (y, layer.weight, layer.bias)
    torch.testing.assert_close(
        [output, *torch.autograd.grad(output, leaves, direction)],
        [expected, *torch.autograd.grad(expected, leaves, direction)],
        rtol=1e-11,
        atol=1e-12,
    )


def test_before_the_correction_starts_it_is_batch_normalization() -> None:
    layer, plain = BatchRenorm2d(3, momentum=0.1), nn.BatchNorm2d(3)
    for _ in range(3):
        y = torch.randn(2, 3, 5, 5)
        torch.testing.assert_close(layer(y), plain(y))
    torch.testing.assert_close(layer.running_mean, plain.running_mean)
    torch.testing.assert_close(layer.running_var, plain.running_var)


def test_with_wide_bounds_it_normalizes_by_the_running_statistics() -> None:
    layer, y = trained_layer()
    layer.r_max, layer.d_max = 1e6, 1e6
    frozen = nn.functional.batch_norm(
        y, layer.running_mean, layer.running_var, layer.weight, layer.bias, eps=layer.eps
    )
    torch.testing.assert_close(layer(y), frozen)


def test_the_schedule_continues_after_a_resume() -> None:
    layer = BatchRenorm2d(3, total_steps=64)
    for _ in range(4):
        layer(torch.randn(2, 3, 4, 4))
        with torch.no_grad():
            layer.bias.add_(0.1)
    resumed = BatchRenorm2d(3, total_steps=64)
    resumed.load_state_dict(layer.state_dict())
    y = torch.randn(2, 3, 4, 4)
    assert torch.equal(resumed(y), layer(y))
    assert resumed.optimizer_steps.steps == 4


def test_a_checkpoint_of_batch_normalization_loads_and_the_schedule_starts_over() -> None:
    layer = BatchRenorm2d(3)
    layer.optimizer_steps.steps.fill_(9)
    layer.load_state_dict(nn.BatchNorm2d(3).state_dict())
    assert layer.optimizer_steps.steps == 0


def test_bfloat16_activations_keep_float32_running_statistics() -> None:
    layer = BatchRenorm2d(3, total_steps=1)
    output = layer(torch.randn(2, 3, 4, 4).bfloat16().requires_grad_())
    output.sum().backward()
    assert output.dtype == torch.bfloat16
    assert layer.running_var is not None
    assert layer.running_var.dtype == torch.float32


def test_a_single_value_raises_as_batch_normalization_does() -> None:
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        BatchRenorm2d(3)(torch.randn(1, 3, 1, 1))


@pytest.mark.parametrize(
    "bad", [{"total_steps": 0}, {"r_max": 0.5}, {"d_max": -1.0}, {"track_running_stats": False}]
)
def test_an_option_out_of_range_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        BatchRenorm2d(3, **bad)
