"""Triton kernels: what an iteration leaves in the window, its slope and its mean patch.

For letters and for what importing needs see `gpu_reading` and `gpu_statistics`.
"""

import triton
import triton.language as tl

from .gpu_statistics import load_weight


@triton.jit
def probe_kernel(answer):
    """Write a one, to see whether a kernel can be built and run."""
    tl.store(answer, 1.0)


@triton.jit
def add_splits(sums, total, splits, size, block, BLOCK: tl.constexpr, BLOCK_SPLITS: tl.constexpr):
    """Write the sum over splits of `sums` (S, size) into `total` (size,)."""
    at = block * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    added = tl.zeros((BLOCK_SPLITS, BLOCK), tl.float32)
    for begin in range(0, splits, BLOCK_SPLITS):
        split = begin + tl.arange(0, BLOCK_SPLITS)
        there = (split < splits)[:, None] & inside[None, :]
        added += tl.load(sums + split[:, None] * size + at[None, :], mask=there, other=0)
    tl.store(total + at, tl.sum(added, 0), mask=inside)


@triton.jit(
    do_not_specialize=[
        "grid_positions",
        "grid_rows",
        "grid_columns",
        "step",
        "height",
        "width",
        "out_height",
        "out_width",
        "length",
        "stride_h",
        "stride_w",
        "dilation_h",
        "dilation_w",
        "pad_h",
        "pad_w",
        "splits",
        "sums_size",
        "out_blocks",
        "patch_blocks",
        "slope_programs",
    ]
)
def slope_kernel(
    x,
    y,
    rows,
    ring_slopes,
    sums,
    total,
    grid_positions,
    grid_rows,
    grid_columns,
    step,
    height,
    width,
    out_height,
    out_width,
    channels,
    in_channels,
    out_group,
    in_group,
    length,
    stride_h,
    stride_w,
    dilation_h,
    dilation_w,
    pad_h,
    pad_w,
    patch_size,
    splits,
    sums_size,
    out_blocks,
    patch_blocks,
    slope_programs,
    TAPS: tl.constexpr,
    TAPS_W: tl.constexpr,
    IS_16_BIT: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_PATCH: tl.constexpr,
    BLOCK_POSITIONS: tl.constexpr,
    BLOCK_SUMS: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
):
    """Write the slope of sampled positions into the ring, and how far their mean is from the map's.

    Positions are every `step`-th row and column of the output. Entries of a patch are walked taps
    first, in which order the input's channels are neighbours in memory. The programs behind those
    of the slope add up the sums that reading the input left, one for each of its splits.
    """
    program = tl.program_id(0)
    if program < slope_programs:
        out_block, tile = program % out_blocks, program // out_blocks
        patch_block, group = tile % patch_blocks, tile // patch_blocks
        local = out_block * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
        walked = patch_block * BLOCK_PATCH + tl.arange(0, BLOCK_PATCH)
        inside_out = local < out_group
        inside_patch = walked < patch_size
        channel = group * out_group + local
        tap = walked // in_group
        i = walked % in_group
        mean = tl.load(rows + 10 * channels + channel, mask=inside_out, other=0)
        slope = tl.zeros((BLOCK_OUT, BLOCK_PATCH), tl.float32)
        left = tl.zeros((BLOCK_OUT,), tl.float32)
        for begin in range(0, grid_positions, BLOCK_POSITIONS):
            p = begin + tl.arange(0, BLOCK_POSITIONS)
            inside = p < grid_positions
            image = p // (grid_rows * grid_columns)
            out_row = (p // grid_columns) % grid_rows * step
            out_column = p % grid_columns * step
            there = inside[:, None] & inside_out[None, :]
            pixel = (image.to(tl.int64) * out_height + out_row) * out_width + out_column
            value = tl.load(y + pixel[:, None] * channels + channel[None, :], there, other=0)
            centred = tl.where(there, value.to(tl.float32) - mean[None, :], 0.0)
            left += tl.sum(centred, 0)
            row = (out_row * stride_h - pad_h)[:, None] + (tap // TAPS_W * dilation_h)[None, :]
            column = (out_column * stride_w - pad_w)[:, None] + (tap % TAPS_W * dilation_w)[None, :]
            seen = inside[:, None] & inside_patch[None, :]
            seen = seen & (row >= 0) & (row < height) & (column >= 0) & (column < width)
            place = (image.to(tl.int64)[:, None] * height + row) * width + column
            place = place * in_channels + (group * in_group + i)[None, :]
            pixels = tl.load(x + place, mask=seen, other=0)
            weights = tl.trans(centred * (2.0 / grid_positions))
            if IS_16_BIT:
                # bfloat16 has float32's range, and the slope only moves a correction.
                slope += tl.dot(weights.to(tl.bfloat16), pixels.to(tl.bfloat16))
            else:
                slope += tl.dot(weights, pixels.to(tl.float32), input_precision="ieee")
        entry = tl.load(rows + 12 * channels).to(tl.int32)
        f = i * TAPS + tap
        place = (channel * length + entry)[:, None] * patch_size + f[None, :]
        tl.store(ring_slopes + place, slope, mask=inside_out[:, None] & inside_patch[None, :])
        if patch_block == 0:
            tl.store(rows + 13 * channels + channel, left / grid_positions, mask=inside_out)
    else:
        block = program - slope_programs
        add_splits(sums, total, splits, sums_size, block, BLOCK_SUMS, BLOCK_SPLITS)


@triton.jit
def load_patch(sums, f, inside, group, in_channels, in_group, positions, TAPS: tl.constexpr):
    """Return entries f = (i, kh, kw) of a group's mean patch from `sums` (kH, kW, C_in)."""
    at = (f % TAPS) * in_channels + group * in_group + f // TAPS
    return tl.load(sums + at, mask=inside, other=0) / positions


@triton.jit(
    do_not_specialize=["positions", "length", "smallest"],
    do_not_specialize_on_alignment=["weight", "bias"],
)
def record_kernel(
    rows,
    sums,
    weight,
    bias,
    ring_positions,
    ring_means,
    ring_variances,
    ring_patches,
    ring_mean_responses,
    ring_slopes,
    ring_slope_responses,
    positions,
    channels,
    in_channels,
    stride_c,
    stride_i,
    stride_h,
    stride_w,
    out_channels,
    length,
    patch_size,
    smallest,
    TAPS: tl.constexpr,
    TAPS_W: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    IS_SAMPLED: tl.constexpr,
    BLOCK_PATCH: tl.constexpr,
):
    """For one channel: the mean patch, both responses and the finished slope, into the ring.

    `sums` is (kH, kW, C_in). See `observation.sampled_slope` for what a sample is corrected by.
    """
    channel = tl.program_id(0)
    entry = tl.load(rows + 12 * channels).to(tl.int32)
    mean = tl.load(rows + 10 * channels + channel)
    variance = tl.load(rows + 11 * channels + channel)
    left = tl.load(rows + 13 * channels + channel)
    group = channel // out_channels
    groups = channels // out_channels
    slopes = ring_slopes + (channel * length + entry) * patch_size
    patches = ring_patches + (entry * groups + group) * patch_size
    in_group = patch_size // TAPS
    first_of_group = channel % out_channels == 0
    response = tl.zeros((BLOCK_PATCH,), tl.float32)
    slope_response = tl.zeros((BLOCK_PATCH,), tl.float32)
    for begin in range(0, patch_size, BLOCK_PATCH):
        f = begin + tl.arange(0, BLOCK_PATCH)
        inside = f < patch_size
        w = load_weight(
            weight, channel, f, inside, stride_c, stride_i, stride_h, stride_w, TAPS, TAPS_W
        )
        patch = load_patch(sums, f, inside, group, in_channels, in_group, positions, TAPS)
        tl.store(patches + f, patch, mask=inside & first_of_group)
        slope = tl.load(slopes + f, mask=inside, other=0)
        if IS_SAMPLED:
            slope -= 2 * left * patch
        response += patch * w
        slope_response += slope * w
    mean_response = tl.sum(response, 0)
    own = tl.sum(slope_response, 0)
    if IS_SAMPLED:
        wanted = 2 * variance
        gain = tl.where(own > smallest * wanted, wanted / own, 1.0)
        own *= gain
        for begin in range(0, patch_size, BLOCK_PATCH):
            f = begin + tl.arange(0, BLOCK_PATCH)
            inside = f < patch_size
            patch = load_patch(sums, f, inside, group, in_channels, in_group, positions, TAPS)
            slope = tl.load(slopes + f, mask=inside, other=0)
            tl.store(slopes + f, (slope - 2 * left * patch) * gain, mask=inside)
    if HAS_BIAS:
        mean -= tl.load(bias + channel).to(tl.float32)
    place = entry * channels + channel
    tl.store(ring_means + place, mean)
    tl.store(ring_variances + place, variance)
    tl.store(ring_mean_responses + place, mean_response)
    tl.store(ring_slope_responses + place, own)
    if channel == 0:
        tl.store(ring_positions + entry, positions.to(tl.int64))
