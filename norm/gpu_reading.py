"""Triton kernel: one read of a convolution's output and input, and what is added up of each.

Importing this module needs Triton, which comes with torch's builds for GPUs.

Shapes: M positions, C channels, S splits of a map among programs, K = kH*kW taps. Maps are dense
channels_last, sums float32. Offsets into maps are 64 bits wide: those of two frames of five
megapixels come near 2^31 numbers.
"""

import triton
import triton.language as tl


@triton.jit
def split_moments(
    y,
    moments,
    positions,
    channels,
    split_rows,
    splits,
    block,
    split,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """Write a split's mean and sum of squared deviations, both into `moments` (2, S, C).

    Deviations count from the split's first row, so that nothing large is subtracted from
    something large.
    """
    channel = block * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    inside = channel < channels
    first = split * split_rows
    last = tl.minimum(first + split_rows, positions)
    start = first.to(tl.int64) * channels
    pivot = tl.load(y + start + channel, mask=inside, other=0).to(tl.float32)
    total = tl.zeros((BLOCK_ROWS, BLOCK_CHANNELS), tl.float32)
    square = tl.zeros((BLOCK_ROWS, BLOCK_CHANNELS), tl.float32)
    for begin in range(first, last, BLOCK_ROWS):
        row = begin + tl.arange(0, BLOCK_ROWS)
        there = (row < last)[:, None] & inside[None, :]
        place = row.to(tl.int64)[:, None] * channels + channel[None, :]
        value = tl.load(y + place, mask=there, other=0).to(tl.float32)
        apart = tl.where(there, value - pivot[None, :], 0.0)
        total += apart
        square += apart * apart
    count = (last - first).to(tl.float32)
    shift = tl.sum(total, 0) / count
    spread = tl.sum(square, 0) - shift * shift * count
    spread = tl.maximum(spread, 0.0, propagate_nan=tl.PropagateNan.ALL)
    place = split * channels + channel
    tl.store(moments + place, pivot + shift, mask=inside)
    tl.store(moments + splits * channels + place, spread, mask=inside)


@triton.jit
def split_sums(
    x,
    sums,
    positions,
    channels,
    split_rows,
    block,
    split,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """Write a split's sums over positions into `sums` (S, C)."""
    channel = block * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    inside = channel < channels
    first = split * split_rows
    last = tl.minimum(first + split_rows, positions)
    total = tl.zeros((BLOCK_ROWS, BLOCK_CHANNELS), tl.float32)
    for begin in range(first, last, BLOCK_ROWS):
        row = begin + tl.arange(0, BLOCK_ROWS)
        there = (row < last)[:, None] & inside[None, :]
        place = row.to(tl.int64)[:, None] * channels + channel[None, :]
        total += tl.load(x + place, mask=there, other=0).to(tl.float32)
    tl.store(sums + split * channels + channel, tl.sum(total, 0), mask=inside)


@triton.jit
def split_tap_sums(
    x,
    row_counts,
    column_counts,
    sums,
    image_rows,
    height,
    width,
    channels,
    split_rows,
    block,
    split,
    TAPS_H: tl.constexpr,
    TAPS_W: tl.constexpr,
    BLOCK_TAPS_H: tl.constexpr,
    BLOCK_TAPS_W: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """Write a split's sums of what each tap sees into `sums` (S, kH, kW, C).

    A pixel counts as often as the tap sees it: the product of the counts of its row and column.
    """
    channel = block * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    inside = channel < channels
    first = split * split_rows
    last = tl.minimum(first + split_rows, image_rows)
    # The interpreter's loops count in plain integers, which have no type to widen.
    wide = tl.full((), 1, tl.int64)
    tap_h = tl.arange(0, BLOCK_TAPS_H)
    tap_w = tl.arange(0, BLOCK_TAPS_W)
    total = tl.zeros((BLOCK_TAPS_H, BLOCK_TAPS_W, BLOCK_CHANNELS), tl.float32)
    for row in range(first, last):
        line = tl.zeros((BLOCK_TAPS_W, BLOCK_COLUMNS, BLOCK_CHANNELS), tl.float32)
        start = wide * row * width * channels
        for begin in range(0, width, BLOCK_COLUMNS):
            column = begin + tl.arange(0, BLOCK_COLUMNS)
            there = (column < width)[:, None] & inside[None, :]
            place = start + column[:, None] * channels + channel[None, :]
            value = tl.load(x + place, mask=there, other=0).to(tl.float32)
            counted = (tap_w < TAPS_W)[:, None] & (column < width)[None, :]
            count = tl.load(
                column_counts + tap_w[:, None] * width + column[None, :], counted, other=0
            )
            line += count[:, :, None] * value[None, :, :]
        by_tap = tl.sum(line, 1)
        count = tl.load(row_counts + tap_h * height + row % height, tap_h < TAPS_H, other=0)
        total += count[:, None, None] * by_tap[None, :, :]
    place = (split * TAPS_H + tap_h)[:, None, None] * TAPS_W + tap_w[None, :, None]
    there = (tap_h < TAPS_H)[:, None, None] & (tap_w < TAPS_W)[None, :, None]
    there = there & inside[None, None, :]
    tl.store(sums + place * channels + channel[None, None, :], total, mask=there)


# Sizes say nothing of alignment, but for the channels that lie side by side in memory.
@triton.jit(
    do_not_specialize=[
        "positions",
        "split_rows",
        "splits",
        "blocks",
        "x_rows",
        "x_height",
        "x_width",
        "x_split_rows",
        "x_blocks",
    ]
)
def read_kernel(
    y,
    x,
    row_counts,
    column_counts,
    moments,
    sums,
    positions,
    channels,
    split_rows,
    splits,
    blocks,
    x_rows,
    x_height,
    x_width,
    x_channels,
    x_split_rows,
    x_blocks,
    IS_UNIT: tl.constexpr,
    TAPS_H: tl.constexpr,
    TAPS_W: tl.constexpr,
    BLOCK_TAPS_H: tl.constexpr,
    BLOCK_TAPS_W: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    BLOCK_X_CHANNELS: tl.constexpr,
):
    """Read the output for its moments and the input for its mean patch, in one launch.

    The first `blocks` * `splits` programs take the output. `x_rows` counts positions where each
    pixel is seen once (`IS_UNIT`), and rows of all images otherwise.
    """
    program = tl.program_id(0)
    if program < blocks * splits:
        split_moments(
            y,
            moments,
            positions,
            channels,
            split_rows,
            splits,
            program % blocks,
            program // blocks,
            BLOCK_ROWS,
            BLOCK_CHANNELS,
        )
    else:
        rest = program - blocks * splits
        if IS_UNIT:
            split_sums(
                x,
                sums,
                x_rows,
                x_channels,
                x_split_rows,
                rest % x_blocks,
                rest // x_blocks,
                BLOCK_ROWS,
                BLOCK_X_CHANNELS,
            )
        else:
            split_tap_sums(
                x,
                row_counts,
                column_counts,
                sums,
                x_rows,
                x_height,
                x_width,
                x_channels,
                x_split_rows,
                rest % x_blocks,
                rest // x_blocks,
                TAPS_H,
                TAPS_W,
                BLOCK_TAPS_H,
                BLOCK_TAPS_W,
                BLOCK_COLUMNS,
                BLOCK_X_CHANNELS,
            )
