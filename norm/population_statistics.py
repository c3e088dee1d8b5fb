"""Statistics of all the data, pooled from batches of any size."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .functional import BatchStatistics

# Values taken at once: their float64 copy is 8 MB. A 5-megapixel map of 64 channels would take
# 2.5 GB in one piece, and pieces that fit in a cache are several times as fast on a CPU.
PIECE_VALUES = 2**20


class RunningStatistics(NamedTuple):
    """What a layer's buffers hold: mean and variance, both (C,)."""

    mean: Tensor
    variance: Tensor


def exact_statistics(y: Tensor) -> BatchStatistics:
    """Return mean and population variance of `y` (N, C, ...) over all axes but C, in float64.

    Float32 sums are not enough: the kernel that batch normalization runs on a CPU adds a
    channels_last map value by value and loses digits in proportion to the frame.

    Args:
        y: Activations of any floating-point type, not empty.
    """
    total: BatchStatistics | None = None
    for piece in _pieces(y):
        axes = [axis for axis in range(piece.dim()) if axis != 1]
        values = piece.detach().to(torch.float64)
        mean = values.mean(axes, keepdim=True)
        variance = (values - mean).square_().mean(axes)
        part = BatchStatistics(mean.flatten(), variance, values.numel() // values.shape[1])
        total = part if total is None else pool_pair(total, part)
    assert total is not None  # Splitting gives at least one piece.
    return total


def _pieces(y: Tensor) -> Iterator[Tensor]:
    """Split `y` along images, and along rows where one image is more than a piece."""
    image_values = y[0].numel()
    if image_values <= PIECE_VALUES or y.dim() < 3:
        yield from torch.split(y, max(1, PIECE_VALUES // image_values))
        return
    rows = max(1, PIECE_VALUES * y.shape[2] // image_values)
    for image in torch.split(y, 1):
        yield from torch.split(image, rows, dim=2)


def pool_pair(a: BatchStatistics, b: BatchStatistics) -> BatchStatistics:
    """Pool two sets of statistics by positions: the variance within and the one between.

    The parallel form of Chan, Golub and LeVeque, *Updating Formulae and a Pairwise Algorithm for
    Computing Sample Variances* (STAN-CS-79-773). But for rounding, the result does not depend on
    how values are split into sets.
    """
    positions = a.positions + b.positions
    share = b.positions / positions
    shift = b.mean - a.mean
    variance = a.variance + (b.variance - a.variance) * share
    return BatchStatistics(
        a.mean + shift * share, variance + shift.square() * (share * (1 - share)), positions
    )


def change_in_deviations(old: RunningStatistics, new: RunningStatistics, eps: float) -> float:
    """Return the largest change of a channel's mean or deviation, in parts of the new deviation.

    Both deviations are sqrt(variance + eps), which is what a layer divides by. The change is
    infinite where either side is no number or a variance is negative.
    """
    deviation = (new.variance.double() + eps).sqrt()
    shift = (new.mean.double() - old.mean.double()).abs()
    spread = (deviation - (old.variance.double() + eps).sqrt()).abs()
    change = torch.maximum(shift, spread)
    # With an eps of zero a constant channel has no deviation, and needs none if nothing moved.
    relative = (change / deviation).where(change != 0, 0)
    return float(relative.nan_to_num(nan=math.inf, posinf=math.inf).max())
