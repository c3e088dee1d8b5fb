"""What a layer remembers of past iterations.

A window answers two calls: `estimates` says what the past tells about today's weights, and `record`
takes today in. A window that keeps a moving average in place of single iterations is another class
with these two methods.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .convolution_moments import mean_response, slope_response
from .functional import (
    VarianceForm,
    WindowEstimates,
    statistics_dtype,
    taylor_means,
    taylor_variances,
)
from .optional_state import OptionalState


class Iteration(NamedTuple):
    """One iteration as the window remembers it.

    Attributes:
        mean: Mean of the convolution's output without its bias, (C,).
        variance: Population variance of the output, (C,).
        positions: Values a channel, M.
        mean_patch: Mean input patch of each group, (G, I, kH, kW).
        variance_slope: d sigma^2/dw, (C, I, kH, kW).
    """

    mean: Tensor
    variance: Tensor
    positions: int
    mean_patch: Tensor
    variance_slope: Tensor


class RingWindow(OptionalState):
    """The last `length` iterations, oldest overwritten first, in buffers.

    One tensor of the weight's shape and one mean patch an iteration. No past weight is kept: the
    responses to it are, one number a channel, so the prediction for an unchanged weight is the
    measured value, however coarsely patch and slope are rounded or sampled.

    Patches are (T, G, I*kH*kW) and slopes (T, C, I*kH*kW). Buffers are float32, or float64 for a
    float64 weight, and stay so when a module is cast to a 16-bit type. An entry with `positions` of
    zero is empty.
    """

    next_entry: Tensor
    positions: Tensor
    means: Tensor
    variances: Tensor
    mean_patches: Tensor
    mean_responses: Tensor
    variance_slopes: Tensor
    slope_responses: Tensor

    def __init__(self, length: int, weight: Tensor, groups: int) -> None:
        """Make an empty window for a convolution.

        Args:
            length: Iterations to remember, today not among them; at least 1.
            weight: The convolution's weight, (C, I, kH, kW); its type and device are taken over.
            groups: The convolution's groups.
        """
        super().__init__()
        self.length = length
        dtype, device = statistics_dtype(weight.dtype), weight.device
        # Patches and slopes lie flat: a model that is moved to the channels_last format moves every
        # tensor of four or five dimensions, and fails on one of five.
        channels, patch = weight.shape[0], weight[0].numel()
        self.register_buffer("next_entry", torch.zeros((), dtype=torch.int64, device=device))
        self.register_buffer("positions", torch.zeros(length, dtype=torch.int64, device=device))
        for name, shape in (
            ("means", (channels,)),
            ("variances", (channels,)),
            ("mean_patches", (groups, patch)),
            ("mean_responses", (channels,)),
            ("variance_slopes", (channels, patch)),
            ("slope_responses", (channels,)),
        ):
            self.register_buffer(name, torch.zeros(length, *shape, dtype=dtype, device=device))

    @property
    def filled(self) -> int:
        """How many iterations are remembered; synchronises with a GPU."""
        return int((self.positions > 0).sum())

    def estimates(
        self, weight: Tensor, bias: Tensor | None, *, rho: float, form: VarianceForm
    ) -> WindowEstimates:
        """Move every remembered iteration to today's weight and bias.

        Args:
            weight: The convolution's weight now.
            bias: Its bias now, or None; it shifts the means exactly.
            rho: Length of the Taylor step.
            form: Form of the variance's step.
        """
        weight = weight.detach().to(self.means.dtype)
        responses = mean_response(self.mean_patches, weight)
        means = taylor_means(self.means, self.mean_responses, responses, rho)
        variances = taylor_variances(
            self.variances,
            self.slope_responses,
            slope_response(self.variance_slopes, weight),
            means - self.means,
            rho=rho,
            form=form,
        )
        if bias is not None:
            means = means + bias.detach().to(means.dtype)
        weights = self.positions.to(means.dtype)[:, None].expand_as(means)
        return WindowEstimates(means, variances, weights)

    def record(self, iteration: Iteration, weight: Tensor) -> None:
        """Remember `iteration`, which ran with `weight`, in place of the oldest one."""
        weight = weight.detach().to(self.means.dtype)
        patch = iteration.mean_patch.to(self.means.dtype).flatten(1)
        slope = iteration.variance_slope.to(self.means.dtype).flatten(1)
        entry = self.next_entry.view(1)
        for buffer, value in (
            (self.means, iteration.mean),
            (self.variances, iteration.variance),
            (self.mean_patches, patch),
            (self.mean_responses, mean_response(patch[None], weight)[0]),
            (self.variance_slopes, slope),
            (self.slope_responses, slope_response(slope[None], weight)[0]),
        ):
            buffer.index_copy_(0, entry, value.to(buffer.dtype)[None])
        self.positions.index_fill_(0, entry, iteration.positions)
        self.next_entry.add_(1).remainder_(self.length)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "RingWindow":
        before = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in self.named_buffers(recurse=False):
            if buffer.is_floating_point() and buffer.dtype != statistics_dtype(buffer.dtype):
                # The cast has thrown bits away already, so start from the tensor before it.
                kept = before[name].to(device=buffer.device, dtype=statistics_dtype(buffer.dtype))
                self.register_buffer(name, kept)
        return self
