"""The launches of one layer's forward pass on a GPU: kernels, grids and numbers, made once a size.

What changes from one forward pass to the next are tensors alone; everything else is worked out for
the first one and kept.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .convolution_moments import (
    ConvolutionGeometry,
    PaddingRule,
    sees_each_pixel_once,
    tap_counts,
)
from .observation import sampling_stride

# Programs that a map is divided among.  An H100 runs some five hundred at once.
_PROGRAMS = 1024
# Rows and channels that a program reads at a time: of those tried the quickest on an H100.
_BLOCK_ROWS, _BLOCK_CHANNELS = 32, 64
_BLOCK_POSITIONS = 128


class Launch:
    """A kernel with everything about a call that does not change from one to the next.

    Args:
        kernel: What `triton.jit` returned.
        programs: How many.
        numbers: Arguments between the first tensors and the last ones, see `__call__`.
        constants: Its last arguments, by name and in its order.
    """

    def __init__(
        self,
        kernel: Any,
        programs: int,
        numbers: tuple[int, ...],
        constants: dict[str, Any],
    ) -> None:
        self._kernel = kernel
        self._grid = (programs, 1, 1)
        self._numbers = numbers
        self._constants = constants
        self._last = tuple(constants.values())
        self._compiled: Any = None

    def __call__(self, *first: Any, then: tuple[Any, ...] = ()) -> None:
        """Launch it on the current stream.

        Args:
            *first: Arguments before the numbers.
            then: Arguments behind them.
        """
        if self._compiled is not None:
            # Choosing a compiled kernel by its arguments once more took longer than most of them
            # run.  It was chosen for types, sizes and alignment that `Call` tells apart.
            self._compiled(*first, *self._numbers, *then, *self._last)
            return
        compiled = self._kernel[self._grid](*first, *self._numbers, *then, **self._constants)
        # The interpreter compiles nothing.
        self._compiled = None if compiled is None else compiled[self._grid]


class Call(NamedTuple):
    """What a layer's launches depend on, beside the values of tensors."""

    x_shape: torch.Size
    y_shape: torch.Size
    x_dtype: torch.dtype
    y_dtype: torch.dtype
    device: torch.device
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: str | tuple[int | str, ...]
    dilation: tuple[int, ...]
    groups: int
    rule: PaddingRule
    weight_stride: tuple[int, ...]
    length: int
    slope_positions: int
    is_aligned: bool
    has_bias: bool
    has_gamma: bool
    paper_variance: bool
    paper_gradient: bool


class Plan(NamedTuple):
    """The launches of a layer for one size of input.

    Attributes:
        moments_shape: Of what reading the output leaves.
        sums_shape: Of what reading the input leaves, splits first.
        row_counts: How often a tap sees each row.
        column_counts: And each column.
        read: `gpu_reading.read_kernel`.
        consult: `gpu_statistics.consult_kernel`.
        slope: `gpu_slopes.slope_kernel`.
        record: `gpu_slopes.record_kernel`.
    """

    moments_shape: tuple[int, ...]
    sums_shape: tuple[int, ...]
    row_counts: Tensor
    column_counts: Tensor
    read: Launch
    consult: Launch
    slope: Launch
    record: Launch


class _Splits(NamedTuple):
    """How the rows of a (rows, C) map are divided among programs."""

    rows: int
    number: int
    blocks: int
    block_channels: int


def _splits(rows: int, channels: int, least_rows: int) -> _Splits:
    block_channels = min(_BLOCK_CHANNELS, _power_of_two(channels))
    blocks = -(-channels // block_channels)
    each = max(least_rows, -(-rows // max(1, _PROGRAMS // blocks)))
    return _Splits(each, -(-rows // each), blocks, block_channels)


def _power_of_two(number: int) -> int:
    """Return the least power of two that is not below `number`."""
    return 1 << (number - 1).bit_length()


def make_plan(call: Call, geometry: ConvolutionGeometry) -> Plan:
    """Work out the launches of a layer; nothing is compiled before the first one."""
    batch, channels, out_height, out_width = call.y_shape
    _, in_channels, height, width = call.x_shape
    rows, columns = geometry.rows, geometry.columns
    is_unit = sees_each_pixel_once(geometry)
    own = _splits(batch * out_height * out_width, channels, 2 * _BLOCK_ROWS)
    x_rows = batch * height * (width if is_unit else 1)
    other = _splits(x_rows, in_channels, 2 * _BLOCK_ROWS if is_unit else 1)
    return Plan(
        (2, own.number, channels),
        (other.number, rows.taps * columns.taps * in_channels),
        tap_counts(rows, "zeros", torch.float32, call.device),
        tap_counts(columns, "zeros", torch.float32, call.device),
        _read(call, geometry, own, other, x_rows, is_unit=is_unit),
        _consult(call, own),
        _slope(call, geometry, other),
        _record(call),
    )


def _read(
    call: Call,
    geometry: ConvolutionGeometry,
    own: _Splits,
    other: _Splits,
    x_rows: int,
    *,
    is_unit: bool,
) -> Launch:
    from .gpu_reading import read_kernel

    batch, channels, out_height, out_width = call.y_shape
    _, in_channels, height, width = call.x_shape
    rows, columns = geometry.rows, geometry.columns
    numbers = (
        batch * out_height * out_width,
        channels,
        own.rows,
        own.number,
        own.blocks,
        x_rows,
        height,
        width,
        in_channels,
        other.rows,
        other.blocks,
    )
    constants = {
        "IS_UNIT": is_unit,
        "TAPS_H": rows.taps,
        "TAPS_W": columns.taps,
        "BLOCK_TAPS_H": _power_of_two(rows.taps),
        "BLOCK_TAPS_W": _power_of_two(columns.taps),
        "BLOCK_ROWS": _BLOCK_ROWS,
        # A program holds a line for each of a wide kernel's taps.
        "BLOCK_COLUMNS": 64 if columns.taps <= 4 else 32,
        "BLOCK_CHANNELS": own.block_channels,
        "BLOCK_X_CHANNELS": other.block_channels,
    }
    programs = own.blocks * own.number + other.blocks * other.number
    return Launch(read_kernel, programs, numbers, constants)


def _by_weight(call: Call) -> tuple[tuple[int, ...], dict[str, int]]:
    """Return the numbers and the constants of the kernels that walk over a channel's weight."""
    taps = call.kernel_size[0] * call.kernel_size[1]
    patch = call.x_shape[1] // call.groups * taps
    numbers = (*call.weight_stride, call.y_shape[1] // call.groups, call.length, patch)
    return numbers, {"TAPS": taps, "TAPS_W": call.kernel_size[1]}


def _block_patch(call: Call, largest: int) -> int:
    patch = call.x_shape[1] // call.groups * call.kernel_size[0] * call.kernel_size[1]
    return min(largest, max(16, _power_of_two(patch)))


def _consult(call: Call, own: _Splits) -> Launch:
    from .gpu_statistics import consult_kernel

    batch, channels, out_height, out_width = call.y_shape
    numbers, constants = _by_weight(call)
    positions = batch * out_height * out_width
    return Launch(
        consult_kernel,
        channels,
        (positions, channels, own.rows, own.number, *numbers),
        {
            **constants,
            "HAS_BIAS": call.has_bias,
            "HAS_GAMMA": call.has_gamma,
            "PAPER_VARIANCE": call.paper_variance,
            "PAPER_GRADIENT": call.paper_gradient,
            "BLOCK_SPLITS": _power_of_two(own.number),
            "BLOCK_LENGTH": _power_of_two(call.length),
            "BLOCK_PATCH": _block_patch(call, 256),
        },
    )


def _step(call: Call) -> int:
    batch, _, out_height, out_width = call.y_shape
    return sampling_stride(out_height, out_width, batch, call.slope_positions)


def _slope(call: Call, geometry: ConvolutionGeometry, other: _Splits) -> Launch:
    from .gpu_slopes import slope_kernel

    batch, channels, out_height, out_width = call.y_shape
    _, in_channels, height, width = call.x_shape
    rows, columns = geometry.rows, geometry.columns
    (*_, out_group, length, patch), constants = _by_weight(call)
    step = _step(call)
    grid_rows, grid_columns = -(-out_height // step), -(-out_width // step)
    block_out, block_patch = min(64, max(16, _power_of_two(out_group))), _block_patch(call, 64)
    out_blocks, patch_blocks = -(-out_group // block_out), -(-patch // block_patch)
    programs = out_blocks * patch_blocks * call.groups
    sums_size, block_sums = rows.taps * columns.taps * in_channels, 64
    numbers = (
        *(batch * grid_rows * grid_columns, grid_rows, grid_columns, step),
        *(height, width, out_height, out_width, channels, in_channels),
        *(out_group, in_channels // call.groups, length),
        *(rows.stride, columns.stride, rows.dilation, columns.dilation),
        *(rows.before, columns.before, patch),
        *(other.number, sums_size, out_blocks, patch_blocks, programs),
    )
    constants = {
        **constants,
        "IS_16_BIT": call.y_dtype == torch.bfloat16,
        "BLOCK_OUT": block_out,
        "BLOCK_PATCH": block_patch,
        "BLOCK_POSITIONS": _BLOCK_POSITIONS,
        "BLOCK_SUMS": block_sums,
        "BLOCK_SPLITS": 64,
    }
    return Launch(slope_kernel, programs + -(-sums_size // block_sums), numbers, constants)


def _record(call: Call) -> Launch:
    from .gpu_slopes import record_kernel

    batch, channels, out_height, out_width = call.y_shape
    numbers, constants = _by_weight(call)
    return Launch(
        record_kernel,
        channels,
        (batch * out_height * out_width, channels, call.x_shape[1], *numbers),
        {
            **constants,
            "HAS_BIAS": call.has_bias,
            "IS_SAMPLED": _step(call) > 1,
            "BLOCK_PATCH": _block_patch(call, 256),
        },
    )
