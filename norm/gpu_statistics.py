"""Triton kernel: what today's moments and the window's past make of a forward pass.

`rows` is (14, C) float32, see `fused_window.Rows`; T are the iterations in the window, G groups,
I input channels a group, F = I*kH*kW. For the other letters, and for what importing needs, see
`gpu_reading`.
"""

import triton
import triton.language as tl


@triton.jit
def merged_moments(
    moments, channel, channels, positions, split_rows, splits, BLOCK_SPLITS: tl.constexpr
):
    """Return mean and population variance of a channel from those of its splits (Chan et al.)."""
    split = tl.arange(0, BLOCK_SPLITS)
    there = split < splits
    count = tl.minimum(split_rows, positions - split * split_rows).to(tl.float32)
    count = tl.where(there, count, 0.0)
    mean = tl.load(moments + split * channels + channel, mask=there, other=0)
    square = tl.load(moments + (splits + split) * channels + channel, mask=there, other=0)
    pivot = tl.load(moments + channel)
    whole = pivot + tl.sum(tl.where(there, mean - pivot, 0.0) * count, 0) / positions
    apart = tl.where(there, mean - whole, 0.0)
    variance = (tl.sum(square, 0) + tl.sum(apart * apart * count, 0)) / positions
    return whole, variance


@triton.jit
def move_running(running_mean, running_variance, channel, mean, variance, positions, momentum):
    """Move a channel's running statistics as nn.BatchNorm2d does."""
    old = tl.load(running_mean + channel)
    tl.store(running_mean + channel, old + momentum * (mean - old))
    unbiased = variance * (positions / (positions - 1.0))
    old = tl.load(running_variance + channel)
    tl.store(running_variance + channel, old + momentum * (unbiased - old))


@triton.jit
def store_normalizer(
    rows,
    channel,
    channels,
    mean,
    variance,
    gradient_mean,
    gradient_variance,
    gamma,
    has_gamma: tl.constexpr,
):
    """Write what both passes need of a channel, see `fused_window.Rows`."""
    inverse = 1.0 / tl.sqrt(variance)
    gradient_inverse = 1.0 / tl.sqrt(gradient_variance)
    r = inverse / gradient_inverse
    scale = r
    if has_gamma:
        scale = r * tl.load(gamma + channel).to(tl.float32)
    tl.store(rows + channel, gradient_mean)
    tl.store(rows + channels + channel, gradient_inverse)
    tl.store(rows + 2 * channels + channel, r)
    tl.store(rows + 3 * channels + channel, (gradient_mean - mean) * inverse)
    tl.store(rows + 4 * channels + channel, scale)
    tl.store(rows + 6 * channels + channel, mean)
    tl.store(rows + 7 * channels + channel, inverse)
    tl.store(rows + 8 * channels + channel, variance)
    tl.store(rows + 9 * channels + channel, gradient_variance)


@triton.jit
def load_weight(
    weight,
    channel,
    f,
    inside,
    stride_c,
    stride_i,
    stride_h,
    stride_w,
    TAPS: tl.constexpr,
    TAPS_W: tl.constexpr,
):
    """Return entries f = (i, kh, kw) of a channel's weight, in any memory format."""
    tap = f % TAPS
    at = (f // TAPS) * stride_i + (tap // TAPS_W) * stride_h + (tap % TAPS_W) * stride_w
    return tl.load(weight + (channel * stride_c + at), mask=inside, other=0).to(tl.float32)


@triton.jit(
    do_not_specialize=["positions", "split_rows", "splits", "length", "rho", "eps", "momentum"],
    do_not_specialize_on_alignment=["weight", "bias", "gamma", "running_mean", "running_variance"],
)
def consult_kernel(
    moments,
    rows,
    weight,
    bias,
    gamma,
    ring_positions,
    ring_means,
    ring_variances,
    ring_patches,
    ring_mean_responses,
    ring_slopes,
    ring_slope_responses,
    next_entry,
    running_mean,
    running_variance,
    batches,
    positions,
    channels,
    split_rows,
    splits,
    stride_c,
    stride_i,
    stride_h,
    stride_w,
    out_channels,
    length,
    patch_size,
    rho,
    eps,
    momentum,
    d_max_squared,
    r_max_squared,
    r_min_squared,
    TAPS: tl.constexpr,
    TAPS_W: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_GAMMA: tl.constexpr,
    PAPER_VARIANCE: tl.constexpr,
    PAPER_GRADIENT: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
    BLOCK_LENGTH: tl.constexpr,
    BLOCK_PATCH: tl.constexpr,
):
    """For one channel: today's moments, the window at today's weight, trust, pool, running moments.

    The first program also takes the place that today will have in the ring.
    """
    channel = tl.program_id(0)
    mean, variance = merged_moments(
        moments, channel, channels, positions, split_rows, splits, BLOCK_SPLITS
    )
    tl.store(rows + 10 * channels + channel, mean)
    tl.store(rows + 11 * channels + channel, variance)
    if channel == 0:
        entry = tl.load(next_entry)
        tl.store(rows + 12 * channels, entry.to(tl.float32))
        tl.store(next_entry, (entry + 1) % length)
        tl.store(batches, tl.load(batches) + 1)
    move_running(running_mean, running_variance, channel, mean, variance, positions, momentum)

    age = tl.arange(0, BLOCK_LENGTH)
    known = age < length
    group = channel // out_channels
    groups = channels // out_channels
    mean_now = tl.zeros((BLOCK_LENGTH,), tl.float32)
    slope_now = tl.zeros((BLOCK_LENGTH,), tl.float32)
    for begin in range(0, patch_size, BLOCK_PATCH):
        f = begin + tl.arange(0, BLOCK_PATCH)
        inside = f < patch_size
        w = load_weight(
            weight, channel, f, inside, stride_c, stride_i, stride_h, stride_w, TAPS, TAPS_W
        )
        there = known[:, None] & inside[None, :]
        patch = tl.load(
            ring_patches + (age * groups + group)[:, None] * patch_size + f[None, :], there, other=0
        )
        slope = tl.load(
            ring_slopes + (channel * length + age)[:, None] * patch_size + f[None, :],
            there,
            other=0,
        )
        mean_now += tl.sum(patch * w[None, :], 1)
        slope_now += tl.sum(slope * w[None, :], 1)
    place = age * channels + channel
    past_mean = tl.load(ring_means + place, mask=known, other=0)
    moved = rho * (mean_now - tl.load(ring_mean_responses + place, mask=known, other=0))
    past_variance = tl.load(ring_variances + place, mask=known, other=0)
    past_variance += rho * (slope_now - tl.load(ring_slope_responses + place, known, other=0))
    if PAPER_VARIANCE:
        past_variance -= moved * moved
    past_variance = tl.maximum(past_variance, 0.0, propagate_nan=tl.PropagateNan.ALL)
    past_mean += moved
    if HAS_BIAS:
        past_mean += tl.load(bias + channel).to(tl.float32)
    counts = tl.load(ring_positions + age, mask=known, other=0).to(tl.float32)

    shifts = past_mean - mean
    spread = variance + eps
    ratio = (past_variance + eps) / spread
    usable = (shifts * shifts <= d_max_squared * spread) & (counts > 0)
    usable = usable & (ratio <= r_max_squared) & (ratio >= r_min_squared)
    usable = usable & (tl.abs(past_mean + past_variance) < float("inf"))
    counts = tl.where(usable, counts, 0.0)
    shifts = tl.where(usable, shifts, 0.0)
    total = tl.sum(counts, 0) + positions
    shares = counts / total
    own = positions / total
    shift = tl.sum(shares * shifts, 0)
    apart = shifts - shift
    within = tl.where(usable, past_variance, 0.0) + apart * apart
    pooled = tl.sum(shares * within, 0) + own * (variance + shift * shift) + eps
    centre = mean + shift
    tl.store(rows + 5 * channels + channel, own)
    if PAPER_GRADIENT:
        store_normalizer(rows, channel, channels, centre, pooled, centre, pooled, gamma, HAS_GAMMA)
    else:
        store_normalizer(rows, channel, channels, centre, pooled, mean, spread, gamma, HAS_GAMMA)
