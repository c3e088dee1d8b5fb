"""Input patches and outputs of a convolution at a few fixed positions.

Shapes: N images, groups G, input channels a group I, output channels C, K = kH*kW taps,
F = I*K, P positions.
"""

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from .convolution_moments import ConvolutionGeometry, may_keep_tables, tap_pixels

# 2^32 over the golden ratio: multiples of it, modulo 2^32, spread evenly however many are taken.
_GOLDEN = 2_654_435_769


class SampledPositions(NamedTuple):
    """Where to look: P output positions and the input pixels that each of them sees.

    Attributes:
        image: Image of each position, (P,).
        output_px: Its place in the flattened output map, (P,).
        input_px: The places of its taps in the flattened input map, (P, K).
        seen: Whether a tap lies on the map and not on zero padding, (P, 1, K); None where all do.
        factor: 2 / P, or 0 for those positions that a small map lacks, (P, 1).
    """

    image: Tensor
    output_px: Tensor
    input_px: Tensor
    seen: Tensor | None
    factor: Tensor


def stratified_places(rows: int, columns: int, count: int, device: torch.device) -> Tensor:
    """Return `count` places of a map in row-major order, one in each of `count` equal parts.

    Columns follow multiples of the golden ratio, wherever a part is at least a row long, so that
    places spread over both axes. No random state is read, and integers give the same places on
    every device. Where there are fewer places than wanted, each comes once and the last is
    repeated.

    Args:
        rows: Rows of the map, those of a batch's images one below the other.
        columns: Columns of the map; the map has fewer than 2^31 places.
        count: At least 1.
        device: Where the result lies.
    """
    total = rows * columns
    number = torch.arange(count, device=device)
    if total <= count:
        return number.clamp_max(total - 1)
    first, following = number * total // count, (number + 1) * total // count
    length = following - first
    turned = (number * _GOLDEN + 2**31) % 2**32
    # The row in the middle of a part that holds one, and in that row the column.
    start = first + (length - columns).clamp_min(0) // 2
    in_row = ((turned * columns >> 32) - start) % columns
    return start + in_row.where(length >= columns, turned * length >> 32)


def sampled_positions(
    geometry: ConvolutionGeometry, batch: int, count: int, dtype: torch.dtype, device: torch.device
) -> SampledPositions:
    """Choose `count` output positions of a batch; the same ones for the same sizes.

    Args:
        geometry: Of the convolution.
        batch: Images.
        count: P.
        dtype: Type of `factor`.
        device: Where the result lies.
    """
    rows, columns = geometry.rows, geometry.columns
    places = stratified_places(batch * rows.output_px, columns.output_px, count, device)
    output_px = places % (rows.output_px * columns.output_px)
    row_px, row_there = tap_pixels(output_px // columns.output_px, rows, geometry.padding_mode)
    column_px, column_there = tap_pixels(
        output_px % columns.output_px, columns, geometry.padding_mode
    )
    input_px = (row_px[:, :, None] * columns.input_px + column_px[:, None]).flatten(1)
    padded = geometry.padding_mode == "zeros" and any(
        axis.before or axis.after for axis in (rows, columns)
    )
    seen = (row_there[:, :, None] & column_there[:, None]).flatten(1)[:, None] if padded else None
    usable = min(count, batch * rows.output_px * columns.output_px)
    there = torch.arange(count, device=device)[:, None] < usable
    image = places // (rows.output_px * columns.output_px)
    return SampledPositions(image, output_px, input_px, seen, there.to(dtype) * (2 / usable))


# A model has a few dozen kinds of layer, and frames of a factory a few sizes; a table is small.
_kept_positions = functools.lru_cache(maxsize=1024)(sampled_positions)


def positions_for(
    x: Tensor, geometry: ConvolutionGeometry, count: int, dtype: torch.dtype
) -> SampledPositions:
    """Return `sampled_positions` for the input `x`, from memory where that is possible."""
    choose = _kept_positions if may_keep_tables(x) else sampled_positions
    return choose(geometry, x.shape[0], count, dtype, x.device)


def patches_at(x: Tensor, positions: SampledPositions, groups: int) -> Tensor:
    """Return the input patches at the positions, (G, P, F), in the type of `x`.

    Args:
        x: Input of the convolution, (N, G*I, H, W).
        positions: Where to look.
        groups: G.
    """
    count, taps = positions.input_px.shape
    # Nothing of the map is copied but these pixels, in either memory format.
    pixels = x.flatten(2)[positions.image[:, None], :, positions.input_px].transpose(1, 2)
    if positions.seen is not None:
        pixels = pixels.where(positions.seen, 0)
    return pixels.reshape(count, groups, -1, taps).transpose(0, 1).flatten(2)


def outputs_at(y: Tensor, positions: SampledPositions) -> Tensor:
    """Return the outputs at the positions, (P, C), from the output map `y` (N, C, H, W)."""
    return y.flatten(2)[positions.image, :, positions.output_px]
