"""What one iteration tells a window: statistics, and how they depend on the weight."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .convolution_moments import (
    ConvolutionGeometry,
    PaddingRule,
    convolution_geometry,
    every_nth_output,
    mean_patch,
    mean_response,
    slope_response,
    variance_slope,
)
from .functional import BatchStatistics, statistics_dtype

# A sample whose variance is below this part of the batch's has missed what the channel does, and
# the ratio of the two says nothing of the slope.
SMALLEST_SAMPLED_VARIANCE = 1 / 16


class ForwardPass(NamedTuple):
    """One forward pass of a convolution in training mode, as the layer behind it sees it.

    Attributes:
        convolution: The convolution, with today's weight.
        x: Its input, (N, C_in, H, W).
        y: Its output, (N, C, H_out, W_out).
        today: Statistics of `y`.
        rule: How it pads.
    """

    convolution: nn.Conv2d
    x: Tensor
    y: Tensor
    today: BatchStatistics
    rule: PaddingRule


class Iteration(NamedTuple):
    """One iteration as a window takes it in.

    Patches and slopes lie flat, F = I*kH*kW: a model that is moved to the channels_last format
    moves every buffer of four or five dimensions, and fails on one of five.

    Attributes:
        mean: Mean of the convolution's output without its bias, (C,).
        variance: Population variance of the output, (C,).
        positions: Values a channel, M.
        mean_patch: Mean input patch of each group, (G, F).
        mean_response: <p, w> with today's weight, (C,).
        variance_slope: d sigma^2/dw, (C, F).
        slope_response: <D, w> with today's weight, (C,).
    """

    mean: Tensor
    variance: Tensor
    positions: int
    mean_patch: Tensor
    mean_response: Tensor
    variance_slope: Tensor
    slope_response: Tensor


def sampling_stride(rows: int, columns: int, batch: int, slope_positions: int | None) -> int:
    """Return the widest stride that leaves at least `slope_positions` output positions, 1 or more.

    Args:
        rows: Output rows.
        columns: Output columns.
        batch: Images.
        slope_positions: Positions wanted; None wants all.
    """
    if slope_positions is None:
        return 1
    widest = math.isqrt(rows * columns * batch // slope_positions)
    # Rounding up at both ends can only leave more positions than the division promises.
    return max(1, min(widest, rows, columns))


def observe(
    convolution: nn.Conv2d,
    x: Tensor,
    y: Tensor,
    today: BatchStatistics,
    rule: PaddingRule,
    *,
    slope_positions: int | None,
) -> Iteration:
    """Return what a window needs to know of this iteration.

    Args:
        convolution: The convolution that made `y`, with today's weight.
        x: Its input, (N, C_in, H, W).
        y: Its output, (N, C, H_out, W_out).
        today: Statistics of `y`.
        rule: How it pads.
        slope_positions: See `sampled_slope`.
    """
    dtype = statistics_dtype(y.dtype)
    weight = convolution.weight.detach().to(dtype)
    geometry = convolution_geometry(convolution, x, (y.shape[2], y.shape[3]), rule)
    mean = today.mean
    if convolution.bias is not None:
        mean = mean - convolution.bias.detach().to(dtype)
    patch = mean_patch(x, geometry, dtype).flatten(1)
    slope, response = sampled_slope(x, y, today, weight, geometry, patch, slope_positions)
    return Iteration(
        mean,
        today.variance,
        today.positions,
        patch,
        mean_response(patch[None], weight)[0],
        slope,
        response,
    )


def sampled_slope(
    x: Tensor,
    y: Tensor,
    today: BatchStatistics,
    weight: Tensor,
    geometry: ConvolutionGeometry,
    patch: Tensor,
    slope_positions: int | None,
) -> tuple[Tensor, Tensor]:
    """Return the variance's slope D, (C, F), and <D, w>, (C,), from all or some positions.

    Positions are sampled on a regular grid, which needs no random state and no synchronisation with
    a GPU. The slope of a sample is that of its spread around the batch's mean. For a convolution
    <D, w> is twice the variance, so it is scaled to what the whole batch's variance demands; that
    makes it exact for a weight that only grows or shrinks.

    Args:
        x: The convolution's input.
        y: Its output.
        today: Statistics of `y`.
        weight: The convolution's weight in the type of the statistics.
        geometry: Of the convolution.
        patch: Mean input patch of each group over all positions, (G, F).
        slope_positions: Output positions to look at, at least; None looks at all.
    """
    stride = sampling_stride(y.shape[2], y.shape[3], y.shape[0], slope_positions)
    y = y.detach()
    if stride > 1:
        y, geometry = every_nth_output(y, geometry, stride)
    # bfloat16 has float32's range and the slope only moves a correction, so it may be computed in
    # the activations' type; float16's range is too short for a sum over a megapixel.
    dtype = y.dtype if y.dtype == torch.bfloat16 else today.mean.dtype
    slope = variance_slope(x.to(dtype), y.to(dtype), today.mean, weight.shape, geometry)
    slope = slope.flatten(1).to(weight.dtype)
    if stride > 1:
        # Around the batch's mean a sample does not add up to zero, and what is left would multiply
        # the mean patch: for inputs far from zero it outweighed the slope or turned its sign.
        left = y.to(today.mean.dtype).mean((0, 2, 3)) - today.mean
        slope = slope - (2 * left.view(len(patch), -1, 1) * patch[:, None]).view_as(slope)
    response = slope_response(slope[:, None], weight)[0]
    if stride > 1:
        gain = sampled_gain(response, today.variance)
        slope, response = slope * gain[:, None], response * gain
    return slope, response


def sampled_gain(response: Tensor, variance: Tensor) -> Tensor:
    """Return what a sample's slope is multiplied by, (C,): its <D, w> becomes twice the variance.

    It is 1 where the sample has missed what the channel does.

    Args:
        response: <D, w> of the sample, (C,).
        variance: Variance of the whole batch, (C,).
    """
    wanted = 2 * variance
    return (wanted / response).where(response > SMALLEST_SAMPLED_VARIANCE * wanted, 1)
