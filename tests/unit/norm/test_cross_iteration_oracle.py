"""The layer against slow float64 oracles written from the paper's equations with autograd.

The oracles share no line with the room: they keep past weights (or past inputs) in plain lists and
differentiate by autograd, one channel at a time.
"""

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from norm import CrossIterationBatchNorm2d

EPS = 1e-5
# The paper pools its whole window.
WHOLE_WINDOW: dict[str, Any] = {"d_max": math.inf, "r_max": math.inf}
# Both sides compute in float64; the margin covers a few hundred roundings of values near 1.
TOLERANCE: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-10}


class Oracle(Protocol):
    def __call__(self, x: Tensor, convolution: nn.Conv2d, gamma: Tensor, beta: Tensor) -> Tensor:
        """Return the layer's output, differentiable, and remember this iteration."""
        ...


def channel_slopes(values: Tensor, weight: Tensor) -> Tensor:
    """Differentiate each channel's value in that channel's part of the weight."""
    slopes = [
        torch.autograd.grad(values[c], weight, retain_graph=True)[0][c] for c in range(len(values))
    ]
    return torch.stack(slopes)


def inner(slopes: Tensor, weight: Tensor) -> Tensor:
    return (slopes * weight).flatten(1).sum(1)


class PaperMemory(NamedTuple):
    weight: Tensor
    mean: Tensor
    second_moment: Tensor
    mean_slope: Tensor
    second_moment_slope: Tensor
    positions: int


@dataclass
class PaperOracle:
    """Equations 5 to 11 of arXiv 2002.05712, entries weighted by positions, bias taken out."""

    window_size: int
    rho: float = 1.0
    past: list[PaperMemory] = field(default_factory=list)

    def __call__(self, x: Tensor, convolution: nn.Conv2d, gamma: Tensor, beta: Tensor) -> Tensor:
        weight = convolution.weight
        bias = convolution.bias.detach() if convolution.bias is not None else torch.zeros_like(beta)
        y = convolution(x) - bias.view(1, -1, 1, 1)
        positions = y.numel() // y.shape[1]
        mean, second_moment = y.mean((0, 2, 3)), y.square().mean((0, 2, 3))
        total = positions + sum(memory.positions for memory in self.past)
        pooled_mean = mean * positions / total
        pooled_second_moment = second_moment * positions / total
        for memory in self.past:
            step = self.rho * (weight.detach() - memory.weight)
            moved_mean = memory.mean + inner(memory.mean_slope, step)
            moved = memory.second_moment + inner(memory.second_moment_slope, step)
            share = memory.positions / total
            pooled_mean = pooled_mean + share * moved_mean
            pooled_second_moment = pooled_second_moment + share * torch.maximum(
                moved, moved_mean.square()
            )
        variance = pooled_second_moment - pooled_mean.square()
        self.past.append(
            PaperMemory(
                weight.detach().clone(),
                mean.detach(),
                second_moment.detach(),
                channel_slopes(mean, weight),
                channel_slopes(second_moment, weight),
                positions,
            )
        )
        self.past = self.past[1:] if len(self.past) == self.window_size else self.past
        scaled = (y - pooled_mean.view(1, -1, 1, 1)) / (variance + EPS).sqrt().view(1, -1, 1, 1)
        output: Tensor = scaled * gamma.view(1, -1, 1, 1) + beta.view(1, -1, 1, 1)
        return output


class CentredMemory(NamedTuple):
    x: Tensor
    weight: Tensor
    variance: Tensor
    slope: Tensor
    positions: int


@dataclass
class CentredOracle:
    """Past inputs run again for the exact means, a slope of the variance, and BRN's gradient.

    Past iterations outside the trust region are left out one channel and one iteration at a time.
    """

    window_size: int
    d_max: float = math.inf
    r_max: float = math.inf
    judged: int = 0
    left_out: int = 0
    past: list[CentredMemory] = field(default_factory=list)

    def __call__(self, x: Tensor, convolution: nn.Conv2d, gamma: Tensor, beta: Tensor) -> Tensor:
        weight = convolution.weight
        y = convolution(x)
        positions = y.numel() // y.shape[1]
        batch_mean, batch_variance = y.mean((0, 2, 3)), y.var((0, 2, 3), correction=0)
        means, variances = [batch_mean], [batch_variance]
        counts = [torch.full_like(batch_mean, positions)]
        for memory in self.past:
            means.append(convolution(memory.x).mean((0, 2, 3)))
            moved = memory.variance + inner(memory.slope, weight - memory.weight)
            variances.append(moved.clamp(min=0))
            today = batch_mean.detach(), batch_variance.detach()
            trusted = self.trusted(*today, means[-1].detach(), variances[-1].detach())
            counts.append(memory.positions * trusted)
        weights = torch.stack(counts)
        shares = weights / weights.sum(0)
        stacked = torch.stack(means)
        mean = (shares * stacked).sum(0)
        variance = (shares * torch.stack(variances)).sum(0)
        variance = variance + (shares * (stacked - mean).square()).sum(0)
        slope = channel_slopes(batch_variance, weight)
        self.past.append(
            CentredMemory(
                x.detach(), weight.detach().clone(), batch_variance.detach(), slope, positions
            )
        )
        self.past = self.past[1:] if len(self.past) == self.window_size else self.past
        deviation, batch_deviation = (variance + EPS).sqrt(), (batch_variance + EPS).sqrt()
        r = (batch_deviation / deviation).detach()
        d = ((batch_mean - mean) / deviation).detach()
        scaled = (y - batch_mean.view(1, -1, 1, 1)) / batch_deviation.view(1, -1, 1, 1)
        renormed = scaled * r.view(1, -1, 1, 1) + d.view(1, -1, 1, 1)
        output: Tensor = renormed * gamma.view(1, -1, 1, 1) + beta.view(1, -1, 1, 1)
        return output

    def trusted(self, mean: Tensor, variance: Tensor, past_mean: Tensor, past: Tensor) -> Tensor:
        """Return 1 for each channel whose past estimate stays, 0 where it is left out."""
        kept = []
        for c in range(len(mean)):
            deviation = math.sqrt(float(variance[c]) + EPS)
            ratio = math.sqrt(float(past[c]) + EPS) / deviation
            shift = abs(float(past_mean[c] - mean[c]))
            inside = shift <= self.d_max * deviation and 1 / self.r_max <= ratio <= self.r_max
            kept.append(float(inside))
        self.judged += len(kept)
        self.left_out += kept.count(0.0)
        return torch.tensor(kept, dtype=mean.dtype)


def move_parameters(modules: tuple[nn.Module, ...], generator: torch.Generator) -> None:
    with torch.no_grad():
        for module in modules:
            for parameter in module.parameters():
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_(0.1 * noise)


def assert_agrees(
    convolution: nn.Conv2d,
    layer: CrossIterationBatchNorm2d,
    oracle: Oracle,
    sizes: list[tuple[int, int, int]],
) -> None:
    """Train both over inputs of these (batch, rows, columns) and compare everything they make."""
    generator = torch.Generator().manual_seed(7)
    convolution.double()
    layer.double().bind(convolution)
    plain = nn.BatchNorm2d(layer.num_features).double()
    for batch, rows, columns in sizes:
        shape = (batch, convolution.in_channels, rows, columns)
        x = torch.randn(shape, generator=generator, dtype=torch.float64) + 0.5
        x.requires_grad_()
        leaves = [x, *convolution.parameters(), *layer.parameters()]
        y = convolution(x)
        plain(y.detach())
        output = layer(y)
        direction = torch.randn(output.shape, generator=generator, dtype=torch.float64)
        gradients = torch.autograd.grad(output, leaves, direction)
        expected = oracle(x, convolution, layer.weight, layer.bias)
        torch.testing.assert_close(output, expected, **TOLERANCE)
        for gradient, wanted in zip(
            gradients, torch.autograd.grad(expected, leaves, direction), strict=True
        ):
            torch.testing.assert_close(gradient, wanted, **TOLERANCE)
        torch.testing.assert_close(layer.running_mean, plain.running_mean, **TOLERANCE)
        torch.testing.assert_close(layer.running_var, plain.running_var, **TOLERANCE)
        assert layer.num_batches_tracked == plain.num_batches_tracked
        move_parameters((convolution, layer), generator)


CONVOLUTIONS = {
    "plain": lambda: nn.Conv2d(3, 4, 3, padding=1, bias=False),
    "biased": lambda: nn.Conv2d(3, 4, 3, padding=1),
    "1x1": lambda: nn.Conv2d(3, 4, 1, bias=False),
    "strided": lambda: nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False),
    "stride beyond kernel": lambda: nn.Conv2d(3, 4, 1, stride=2, bias=False),
    "dilated": lambda: nn.Conv2d(3, 4, 3, padding=2, dilation=2, bias=False),
    "grouped": lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2, bias=False),
    "depthwise": lambda: nn.Conv2d(4, 8, 3, groups=4),
    "oblong": lambda: nn.Conv2d(2, 3, (1, 3), stride=(1, 2), padding=(0, 2), bias=False),
    "same, even kernel": lambda: nn.Conv2d(2, 3, 4, padding="same", bias=False),
    "valid": lambda: nn.Conv2d(2, 3, 2, padding="valid", bias=False),
    "reflect": lambda: nn.Conv2d(2, 3, 3, padding=2, padding_mode="reflect"),
    "replicate": lambda: nn.Conv2d(2, 3, 3, padding=2, padding_mode="replicate"),
    "circular": lambda: nn.Conv2d(2, 3, 3, padding=2, padding_mode="circular"),
}
# Six iterations fill a window of three and overwrite it; sizes differ so that weights by positions
# show, and one batch is a single image.
SIZES = [(2, 6, 7), (2, 6, 7), (1, 8, 5), (2, 6, 7), (3, 5, 5), (2, 6, 7)]


# torch notes that it pads a copy for an even kernel, which is the asymmetric case on trial.
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("geometry", CONVOLUTIONS)
def test_papers_form_matches_the_papers_equations(geometry: str) -> None:
    torch.manual_seed(0)
    convolution = CONVOLUTIONS[geometry]()
    layer = CrossIterationBatchNorm2d(
        convolution.out_channels,
        window_size=3,
        variance="paper",
        gradient="paper",
        **WHOLE_WINDOW,
    )
    assert_agrees(convolution, layer, PaperOracle(3), SIZES)


# torch notes that it pads a copy for an even kernel, which is the asymmetric case on trial.
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("geometry", CONVOLUTIONS)
def test_default_form_matches_the_centred_equations(geometry: str) -> None:
    torch.manual_seed(0)
    convolution = CONVOLUTIONS[geometry]()
    layer = CrossIterationBatchNorm2d(convolution.out_channels, window_size=3, **WHOLE_WINDOW)
    assert_agrees(convolution, layer, CentredOracle(3), SIZES)


@pytest.mark.parametrize(("d_max", "r_max"), [(0.3, math.inf), (math.inf, 1.1), (0.5, 1.2)])
def test_the_trust_region_leaves_out_what_the_oracle_leaves_out(d_max: float, r_max: float) -> None:
    torch.manual_seed(0)
    layer = CrossIterationBatchNorm2d(4, window_size=3, d_max=d_max, r_max=r_max)
    oracle = CentredOracle(3, d_max, r_max)
    assert_agrees(nn.Conv2d(2, 4, 3), layer, oracle, SIZES)
    assert 0 < oracle.left_out < oracle.judged, "a region that keeps all or none proves nothing"


@pytest.mark.parametrize("rho", [0.0, 0.3])
def test_rho_shortens_the_papers_step(rho: float) -> None:
    torch.manual_seed(0)
    layer = CrossIterationBatchNorm2d(
        4, window_size=4, rho=rho, variance="paper", gradient="paper", **WHOLE_WINDOW
    )
    assert_agrees(nn.Conv2d(3, 4, 3, bias=False), layer, PaperOracle(4, rho), SIZES)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.integers(1, 2),
    groups=st.integers(1, 2),
    bias=st.booleans(),
    window_size=st.integers(2, 4),
    sizes=st.lists(
        st.tuples(st.integers(1, 2), st.integers(6, 9), st.integers(6, 9)), min_size=2, max_size=4
    ),
)
def test_papers_form_matches_for_any_geometry(
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: int,
    groups: int,
    bias: bool,
    window_size: int,
    sizes: list[tuple[int, int, int]],
) -> None:
    torch.manual_seed(1)
    convolution = nn.Conv2d(2, 4, kernel, stride, padding, dilation, groups, bias)
    layer = CrossIterationBatchNorm2d(
        4, window_size=window_size, variance="paper", gradient="paper", **WHOLE_WINDOW
    )
    assert_agrees(convolution, layer, PaperOracle(window_size), sizes)
