"""The comparator of the cost benchmark: cross-iteration batch normalization as it was published.

arXiv 2002.05712, eqs. 5 to 11, put down one after the other, in the manner of the authors' code:
two autograd passes inside the forward pass, three tensors of the weight's shape for each past
iteration, Python lists for memory, E[y^2] - E[y]^2 in the activation's own type, a burn-in that
counts forward passes. Its weaknesses are what it is here to show, so they are kept, and
`tests/unit/benchmarks/test_norm_transcription.py` demonstrates each. Do not train with it.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from norm import ConversionReport, convert_batchnorm, restore_batchnorm
from norm.conversion import replace_module
from norm.substitute import copy_fused_tail, run_fused_tail, share_state


class _Moments(NamedTuple):
    """E[y] and E[y^2] of each channel, both (C,)."""

    mean: Tensor
    second: Tensor


class PlainCrossIterationBatchNorm2d(nn.Module):
    """A plain transcription of cross-iteration batch normalization, the comparator.

    Yao et al., *Cross-Iteration Batch Normalization*, arXiv 2002.05712, eqs. 5 to 11, with the
    derivative of each channel's statistics in that channel's own part of the weight. It follows the
    authors' published code except that an estimate of E[y^2] below its mean's square is raised
    to it, as eq. 9 of the paper says, where that code leaves the estimate out; and that the
    convolution's weight is reached through the layer, where that code takes it as an argument.

    What it inherits on purpose: the history is in no state_dict and does not follow `.to()`; the
    variance is a difference of large numbers; a pass whose input needs no gradient is plain batch
    normalization and is not remembered; a frozen convolution raises; without a window the
    output is normalized by the unbiased variance, with one by the biased.

    Args:
        convolution: The convolution whose output is normalized; not registered here.
        eps: Added to the deviation, or to the variance if `eps_inside_root`.
        momentum: Moving-average rate of the running statistics.
        window_size: Forward passes pooled, today included.
        burn_in_passes: Forward passes in training mode before the window is used and filled.
        rho: Length of the Taylor step.
        eps_inside_root: Divide by sqrt(variance + eps), as nn.BatchNorm2d does, not by
            sqrt(variance) + eps; the published code has a flag for it.

    Attributes:
        past_means: E[y] of past passes, newest first, (C,) each.
        past_seconds: E[y^2] of past passes, (C,) each.
        past_mean_slopes: dE[y]/dw, of the weight's shape.
        past_second_slopes: dE[y^2]/dw, of the weight's shape.
        past_weights: The weights of past passes.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self,
        convolution: nn.Conv2d,
        eps: float = 1e-5,
        momentum: float = 0.1,
        *,
        window_size: int = 8,
        burn_in_passes: int = 0,
        rho: float = 1.0,
        eps_inside_root: bool = False,
    ) -> None:
        super().__init__()
        # In a tuple the convolution is not registered a second time, and a deep copy still finds
        # the copy of it.
        self._convolution = (convolution,)
        self.eps = eps
        self.momentum = momentum
        self.past_size = window_size - 1
        self.burn_in_passes = burn_in_passes
        self.rho = rho
        self.eps_inside_root = eps_inside_root
        self.passes = 0
        self.past_means: list[Tensor] = []
        self.past_seconds: list[Tensor] = []
        self.past_mean_slopes: list[Tensor] = []
        self.past_second_slopes: list[Tensor] = []
        self.past_weights: list[Tensor] = []
        like = convolution.weight.detach()[:, 0, 0, 0]
        self.weight = nn.Parameter(torch.ones_like(like))
        self.bias = nn.Parameter(torch.zeros_like(like))
        self.register_buffer("running_mean", torch.zeros_like(like))
        self.register_buffer("running_var", torch.ones_like(like))

    def history(self) -> list[Tensor]:
        """Return every tensor that is remembered between two forward passes."""
        return [
            *self.past_means,
            *self.past_seconds,
            *self.past_mean_slopes,
            *self.past_second_slopes,
            *self.past_weights,
        ]

    def forward(self, y: Tensor) -> Tensor:
        """Normalize the convolution's output `y`, (N, C, H, W), and remember this pass."""
        mean, variance = self.running_mean, self.running_var
        if self.training:
            mean, variance = self._training_statistics(y)
        if self.eps_inside_root:
            deviation = (variance + self.eps).sqrt()
        else:
            deviation = variance.sqrt() + self.eps
        scaled = (y - _by_channel(mean)) / _by_channel(deviation)
        return run_fused_tail(self, _by_channel(self.weight) * scaled + _by_channel(self.bias))

    def _training_statistics(self, y: Tensor) -> tuple[Tensor, Tensor]:
        values = y.transpose(0, 1).reshape(y.shape[1], -1)
        today = _Moments(values.mean(1), values.pow(2).mean(1))
        batch_variance = values.var(1)
        self._move_running(today.mean, batch_variance)
        self.passes += 1
        uses_window = self.past_size > 0 and self.passes > self.burn_in_passes
        if not uses_window or not y.requires_grad:
            return today.mean, batch_variance
        weight = self._convolution[0].weight
        ones = torch.ones_like(today.mean)
        mean_slope = torch.autograd.grad(today.mean, weight, ones, retain_graph=True)[0]
        second_slope = torch.autograd.grad(today.second, weight, ones, retain_graph=True)[0]
        pooled = self._pool(today, weight.detach())
        self._remember(today, mean_slope, second_slope, weight)
        return pooled.mean, pooled.second - pooled.mean.square()

    def _pool(self, today: _Moments, weight: Tensor) -> _Moments:
        """Move the past to today's weight (eqs. 7 and 8) and average it with today (eq. 9)."""
        means, seconds = [today.mean], [today.second]
        for mean, slope, then in zip(
            self.past_means, self.past_mean_slopes, self.past_weights, strict=True
        ):
            means.append(mean + (self.rho * slope * (weight - then)).sum((1, 2, 3)))
        for second, slope, then in zip(
            self.past_seconds, self.past_second_slopes, self.past_weights, strict=True
        ):
            seconds.append(second + (self.rho * slope * (weight - then)).sum((1, 2, 3)))
        mean_of_all, second_of_all = torch.stack(means), torch.stack(seconds)
        second_of_all = torch.maximum(second_of_all, mean_of_all.square())
        return _Moments(mean_of_all.mean(0), second_of_all.mean(0))

    def _remember(
        self, today: _Moments, mean_slope: Tensor, second_slope: Tensor, weight: Tensor
    ) -> None:
        kept = self.past_size - 1
        self.past_means = [today.mean.detach(), *self.past_means[:kept]]
        self.past_seconds = [today.second.detach(), *self.past_seconds[:kept]]
        self.past_mean_slopes = [mean_slope.detach(), *self.past_mean_slopes[:kept]]
        self.past_second_slopes = [second_slope.detach(), *self.past_second_slopes[:kept]]
        self.past_weights = [weight.detach().clone(), *self.past_weights[:kept]]

    @torch.no_grad()
    def _move_running(self, mean: Tensor, variance: Tensor) -> None:
        for running, value in ((self.running_mean, mean), (self.running_var, variance)):
            running.copy_((1 - self.momentum) * running + self.momentum * value)


def transcribe(
    model: nn.Module, example_input: Any, **options: Any
) -> tuple[nn.Module, ConversionReport]:
    """Put the transcription in the place of every batch normalization that CBN can take, in place.

    The pairs of convolution and normalization are those of `norm.convert_batchnorm`; parameters
    and running statistics are shared with the layers replaced, and so is a fused activation.

    Args:
        model: The model, with nn.BatchNorm2d layers that learn weight and bias.
        example_input: A tensor, or a tuple of positional arguments; small is enough.
        **options: Keyword options of `PlainCrossIterationBatchNorm2d` beside `eps` and `momentum`.

    Returns:
        The model and what was replaced or left; replaced layers have the kind "transcription".

    Raises:
        ValueError: A layer that would be replaced learns no weight and bias, tracks no running
            statistics or averages them cumulatively; the model is unchanged.
    """
    # A window of one binds nothing, so that asking for the pairs leaves no trace in the model.
    model, report = convert_batchnorm(model, example_input, kind="cbn", window_size=1)
    model = restore_batchnorm(model)
    for entry in report.converted:
        _check_norm(entry.name, model.get_submodule(entry.name))
    for entry in report.converted:
        assert entry.convolution is not None  # CBN converts no layer without one.
        norm = model.get_submodule(entry.name)
        convolution = model.get_submodule(entry.convolution)
        assert isinstance(norm, nn.BatchNorm2d)
        assert isinstance(convolution, nn.Conv2d)
        assert norm.momentum is not None  # `_check_norm` has seen to it.
        plain = PlainCrossIterationBatchNorm2d(convolution, norm.eps, norm.momentum, **options)
        share_state(norm, plain)
        copy_fused_tail(norm, plain)
        plain.train(norm.training)
        model = replace_module(model, norm, plain)
    named = tuple(replace(entry, kind="transcription") for entry in report.converted)
    return model, ConversionReport(named, report.left)


def _check_norm(name: str, norm: nn.Module) -> None:
    assert isinstance(norm, nn.BatchNorm2d)
    if norm.weight is None or norm.running_mean is None or norm.momentum is None:
        raise ValueError(
            f"{name}: the transcription needs weight, bias, running statistics and a momentum, got "
            f"{norm}; leave this layer out of the comparison"
        )


def _by_channel(statistics: Tensor) -> Tensor:
    return statistics.view(1, -1, 1, 1)
