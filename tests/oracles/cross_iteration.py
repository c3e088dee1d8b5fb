"""Cross-iteration batch normalization, slow and from the definitions: float64, autograd, lists.

The oracles share no line with the room `norm`, whose layer only `assert_agrees` runs. They keep
past inputs and past weights, run old inputs again, and differentiate by autograd one channel at a
time. What the past says (one class a
kind of history and variance) and which gradient the output carries are separate choices.
"""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from norm import CrossIterationBatchNorm2d

EPS = 1e-5
GradientForm = Literal["full", "paper"]


class Estimate(NamedTuple):
    """What a part of the past says of today's weights, without bias: both (C,), and its weight."""

    mean: Tensor
    variance: Tensor
    positions: float


class Past(NamedTuple):
    """One iteration: its input, the weight it ran with, and its values a channel."""

    x: Tensor
    weight: Tensor
    positions: int


def response(convolution: nn.Conv2d, x: Tensor, weight: Tensor) -> Tensor:
    """Return the convolution of `x` with another weight and no bias; no hook runs."""
    y: Tensor = convolution._conv_forward(x, weight, None)
    return y


def channel_slopes(values: Tensor, weight: Tensor) -> Tensor:
    """Differentiate each channel's value in that channel's part of the weight."""
    slopes = [
        torch.autograd.grad(values[c], weight, retain_graph=True)[0][c] for c in range(len(values))
    ]
    return torch.stack(slopes)


def inner(slopes: Tensor, weight: Tensor) -> Tensor:
    return (slopes * weight).flatten(1).sum(1)


def moment(y: Tensor, order: int) -> Tensor:
    return y.pow(order).mean((0, 2, 3))


def population_variance(y: Tensor) -> Tensor:
    return y.var((0, 2, 3), correction=0)


def by_channel(values: Tensor) -> Tensor:
    return values.view(1, -1, 1, 1)


@dataclass
class Oracle:
    """The layer but for its past: pooling by positions, the trust region and both gradients.

    Attributes:
        window_size: Forward passes pooled, today included.
        rho: Length of the Taylor step.
        gradient: Which gradient the output carries.
        d_max: Bound of the trust region on the mean.
        r_max: Bound of the trust region on the deviation.
        judged: Channels of past estimates that the trust region has looked at.
        left_out: Those of them it has left out.
        clamped: Predicted variances that were below zero.
    """

    history: ClassVar[str] = "ring"
    variance: ClassVar[str]
    window_size: int
    rho: float = 1.0
    gradient: GradientForm = "full"
    d_max: float = math.inf
    r_max: float = math.inf
    judged: int = 0
    left_out: int = 0
    clamped: int = 0
    past: list[Past] = field(default_factory=list)

    def options(self) -> dict[str, Any]:
        """Return what makes a CrossIterationBatchNorm2d compute the same."""
        return {
            "window_size": self.window_size,
            "rho": self.rho,
            "variance": self.variance,
            "gradient": self.gradient,
            "d_max": self.d_max,
            "r_max": self.r_max,
            "history": self.history,
        }

    def estimates(self, convolution: nn.Conv2d) -> list[Estimate]:
        """Return what the past says of the convolution's weight of today."""
        raise NotImplementedError

    def remember(self, convolution: nn.Conv2d, x: Tensor, positions: int) -> None:
        """Take an iteration in."""
        self.past.append(Past(x.detach(), convolution.weight.detach().clone(), positions))

    def __call__(self, x: Tensor, convolution: nn.Conv2d, gamma: Tensor, beta: Tensor) -> Tensor:
        """Return the layer's output, differentiable, and remember this iteration."""
        bias = convolution.bias.detach() if convolution.bias is not None else torch.zeros_like(beta)
        y = convolution(x) - by_channel(bias)
        positions = y.numel() // y.shape[1]
        batch_mean, batch_variance = moment(y, 1), population_variance(y)
        weights = [torch.full_like(batch_mean, positions)]
        means, variances = [batch_mean], [batch_variance]
        for estimate in self.estimates(convolution):
            means.append(estimate.mean)
            variances.append(self.at_least_zero(estimate.variance))
            kept = self.trusted(
                batch_mean.detach(), batch_variance.detach(), means[-1], variances[-1]
            )
            weights.append(kept * estimate.positions)
        self.remember(convolution, x, positions)
        stacked_mean, stacked_variance = torch.stack(means), torch.stack(variances)
        shares = torch.stack(weights) / torch.stack(weights).sum(0)
        # Equations 9 and 10 as the paper writes them, by second moments.
        mean = (shares * stacked_mean).sum(0)
        pooled = (shares * (stacked_variance + stacked_mean.square())).sum(0) - mean.square()
        if self.gradient == "paper":
            scaled = (y - by_channel(mean)) / by_channel((pooled + EPS).sqrt())
        else:
            deviation, batch_deviation = (pooled + EPS).sqrt(), (batch_variance + EPS).sqrt()
            r = (batch_deviation / deviation).detach()
            d = ((batch_mean - mean) / deviation).detach()
            scaled = (y - by_channel(batch_mean)) / by_channel(batch_deviation)
            scaled = scaled * by_channel(r) + by_channel(d)
        output: Tensor = scaled * by_channel(gamma) + by_channel(beta)
        return output

    def at_least_zero(self, values: Tensor) -> Tensor:
        self.clamped += int((values < 0).sum())
        return values.clamp(min=0)

    def trusted(
        self, mean: Tensor, variance: Tensor, past_mean: Tensor, past_variance: Tensor
    ) -> Tensor:
        """Return 1 for each channel whose past estimate stays, 0 where it is left out."""
        kept = []
        for c in range(len(mean)):
            deviation = math.sqrt(float(variance[c]) + EPS)
            ratio = math.sqrt(float(past_variance[c]) + EPS) / deviation
            shift = abs(float(past_mean[c] - mean[c]))
            inside = shift <= self.d_max * deviation and 1 / self.r_max <= ratio <= self.r_max
            kept.append(float(inside))
        self.judged += len(kept)
        self.left_out += kept.count(0.0)
        return torch.tensor(kept, dtype=mean.dtype)


@dataclass
class RingOracle(Oracle):
    """The last `window_size` - 1 iterations, one estimate each."""

    def estimates(self, convolution: nn.Conv2d) -> list[Estimate]:
        return [self.moved(past, convolution) for past in self.recent()]

    def recent(self) -> list[Past]:
        return self.past[max(0, len(self.past) - (self.window_size - 1)) :]

    def moved(self, past: Past, convolution: nn.Conv2d) -> Estimate:
        """Return one past iteration moved to today's weight."""
        raise NotImplementedError


@dataclass
class PaperOracle(RingOracle):
    """Equations 7, 8 and 11 of arXiv 2002.05712: E[y] and E[y^2] each take their Taylor step."""

    variance: ClassVar[str] = "paper"

    def moved(self, past: Past, convolution: nn.Conv2d) -> Estimate:
        weight = past.weight.clone().requires_grad_()
        y = response(convolution, past.x, weight)
        step = self.rho * (convolution.weight.detach() - past.weight)
        mean, second_moment = (
            moment(y, order).detach() + inner(channel_slopes(moment(y, order), weight), step)
            for order in (1, 2)
        )
        return Estimate(mean, second_moment - mean.square(), past.positions)


@dataclass
class CentredOracle(RingOracle):
    """The exact mean, by running the old input again, and the variance's own Taylor step."""

    variance: ClassVar[str] = "centred"

    def moved(self, past: Past, convolution: nn.Conv2d) -> Estimate:
        weight = past.weight.clone().requires_grad_()
        today = convolution.weight.detach()
        y = response(convolution, past.x, weight)
        then, now = moment(y, 1).detach(), moment(response(convolution, past.x, today), 1)
        mean = then + self.rho * (now - then)
        slope = self.slope(y, weight)
        moved = population_variance(y).detach() + inner(slope, self.rho * (today - past.weight))
        return Estimate(mean, moved, past.positions)

    def slope(self, y: Tensor, weight: Tensor) -> Tensor:
        """Return the slope of the variance of `y`, which `weight` made."""
        return channel_slopes(population_variance(y), weight)


class Spread(NamedTuple):
    """What one iteration added to the variance of the past: an affine function of the weight.

    Attributes:
        value: At the weight it was taken at, (C,).
        slope: Its derivative there, of the weight's shape.
        lift: What took the variance of the past so far from below zero up to zero, (C,).
    """

    value: Tensor
    slope: Tensor
    lift: Tensor


@dataclass
class ExponentialOracle(Oracle):
    """All past iterations as one, each weighing its positions times (1 - 1/window_size)^age.

    No average is carried along: weights are powers of the decay, the mean runs every old input
    again, and the variance is the sum of what each iteration once added to it. Iteration t added
    a sigma^2(w) + a (1 - a) (mu(w) - m(w))^2, where a is its share of the weight so far and m the
    mean of those before it, linearised at its own weight. `rho` shortens the steps, which
    telescope, and not the derivatives.

    The variance of the past is clamped at zero wherever it is looked at, so also where an iteration
    is taken in; its slope stays.
    """

    variance: ClassVar[str] = "centred"
    history: ClassVar[str] = "exponential"
    spreads: list[Spread] = field(default_factory=list)

    def weight_of(self, first: int, last: int, at: int) -> float:
        """Return the weight at iteration `at` of iterations `first` to `last`, both included."""
        decay = 1 - 1 / self.window_size
        return sum(self.past[i].positions * decay ** (at - i) for i in range(first, last + 1))

    def mean_at(self, convolution: nn.Conv2d, weight: Tensor, rho: float) -> Tensor:
        """Return the mean of the whole past at `weight`, differentiable in it."""
        newest = len(self.past) - 1
        mean = torch.zeros(len(weight), dtype=weight.dtype)
        for i, past in enumerate(self.past):
            then = moment(response(convolution, past.x, past.weight), 1)
            now = moment(response(convolution, past.x, weight), 1)
            share = self.weight_of(i, i, newest) / self.weight_of(0, newest, newest)
            mean = mean + share * (then + rho * (now - then))
        return mean

    def variance_at(self, weight: Tensor) -> Tensor:
        """Return the variance of the whole past at `weight`; it may lie below zero."""
        newest = len(self.past) - 1
        total = torch.zeros(len(weight), dtype=weight.dtype)
        for i, (past, spread) in enumerate(zip(self.past, self.spreads, strict=True)):
            # What was the whole past then is now this part of it.
            retained = self.weight_of(0, i, newest) / self.weight_of(0, newest, newest)
            step = self.rho * (weight - past.weight)
            total = total + retained * (spread.value + spread.lift + inner(spread.slope, step))
        return total

    def estimates(self, convolution: nn.Conv2d) -> list[Estimate]:
        if not self.past:
            return []
        weight = convolution.weight.detach()
        positions = self.weight_of(0, len(self.past) - 1, len(self.past))
        mean = self.mean_at(convolution, weight, self.rho)
        return [Estimate(mean, self.variance_at(weight), positions)]

    def remember(self, convolution: nn.Conv2d, x: Tensor, positions: int) -> None:
        if self.window_size == 1:
            return
        weight = convolution.weight.detach().clone().requires_grad_()
        y = response(convolution, x.detach(), weight)
        added, lift = population_variance(y), torch.zeros(len(weight), dtype=weight.dtype)
        if self.past:
            share = positions / (positions + self.weight_of(0, len(self.past) - 1, len(self.past)))
            apart = moment(y, 1) - self.mean_at(convolution, weight, 1.0)
            measured = moment(y, 1) - self.mean_at(convolution, weight, self.rho)
            apart = apart + (measured - apart).detach()
            added = share * added + share * (1 - share) * apart.square()
            lift = (1 - share) * self.variance_at(weight.detach()).clamp(max=0).neg()
        self.spreads.append(Spread(added.detach(), channel_slopes(added, weight), lift))
        super().remember(convolution, x, positions)


def move_parameters(
    modules: tuple[nn.Module, ...], generator: torch.Generator, movement: float
) -> None:
    with torch.no_grad():
        for module in modules:
            for parameter in module.parameters():
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_(movement * noise)


def assert_same(actual: Tensor | None, expected: Tensor | None, rtol: float = 1e-9) -> None:
    """Compare in float64.

    The relative margin covers some thousand roundings. An element that is a small difference of
    large ones is only as good as those, so the absolute margin follows the largest element.
    """
    assert actual is not None
    assert expected is not None
    largest = max(1.0, float(expected.detach().abs().max()))
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=0.1 * rtol * largest)


def assert_agrees(
    convolution: nn.Conv2d,
    oracle: Oracle,
    sizes: list[tuple[int, int, int]],
    movement: float = 0.1,
) -> None:
    """Train the layer and the oracle side by side and compare everything they make.

    Args:
        convolution: What the layer is bound to.
        oracle: Its options are the layer's.
        sizes: The inputs' (batch, rows, columns), one an iteration.
        movement: Standard deviation of what is added to every parameter after an iteration.
    """
    generator = torch.Generator().manual_seed(7)
    convolution.double()
    layer = CrossIterationBatchNorm2d(convolution.out_channels, eps=EPS, **oracle.options())
    layer.double().bind(convolution)
    plain = nn.BatchNorm2d(layer.num_features, eps=EPS).double()
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
        assert_same(output, expected)
        wanted = torch.autograd.grad(expected, leaves, direction)
        for gradient, wanted_gradient in zip(gradients, wanted, strict=True):
            assert_same(gradient, wanted_gradient)
        assert_same(layer.running_mean, plain.running_mean)
        assert_same(layer.running_var, plain.running_var)
        assert layer.num_batches_tracked == plain.num_batches_tracked
        move_parameters((convolution, layer), generator, movement)
