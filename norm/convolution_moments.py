"""How the mean and variance of a convolution's output depend on its weight.

For y = conv(x, w) over M positions both are inner products with tensors that are cheap to have:
the mean is <p, w> with p the mean input patch, and d sigma^2/dw is a weight-gradient convolution
of the centred output. Nothing here runs autograd.

Shapes: groups G, input channels a group I, output channels C, kernel kH x kW.
"""

import functools
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

PaddingRule = Literal["declared", "same"]
PADDING_RULES: tuple[PaddingRule, ...] = ("declared", "same")
# Sixteen times the positions that a slope is sampled from by default.
FEW_POSITIONS_ON_A_GPU = 16_384


class Axis(NamedTuple):
    """One spatial axis of a convolution: `before` and `after` count padded rows or columns."""

    input_px: int
    output_px: int
    taps: int
    stride: int
    dilation: int
    before: int
    after: int


class ConvolutionGeometry(NamedTuple):
    """Which input pixels a convolution's output sees, for one size of input."""

    rows: Axis
    columns: Axis
    padding_mode: str
    groups: int


def convolution_geometry(
    convolution: nn.Conv2d, x: Tensor, output_size: tuple[int, int], rule: PaddingRule
) -> ConvolutionGeometry:
    """Describe how `convolution` maps `x` to an output of `output_size` (rows, columns).

    Args:
        convolution: The layer; only its declared settings are read.
        x: Its input, (N, G*I, H, W); only its size is read.
        output_size: Rows and columns of its output.
        rule: "declared" reads `convolution.padding`; "same" pads as TensorFlow does, from the
            sizes, which is what Conv2d subclasses that pad for themselves do.
    """
    axes = []
    for axis in (0, 1):
        input_px, output_px = x.shape[2 + axis], output_size[axis]
        taps, stride = convolution.kernel_size[axis], convolution.stride[axis]
        dilation = convolution.dilation[axis]
        span = dilation * (taps - 1)
        if rule == "same":
            total = max((output_px - 1) * stride + span + 1 - input_px, 0)
        elif isinstance(convolution.padding, str):
            total = span if convolution.padding == "same" else 0
        else:
            total = 2 * int(convolution.padding[axis])
        before = total // 2
        axes.append(Axis(input_px, output_px, taps, stride, dilation, before, total - before))
    mode = "zeros" if rule == "same" else convolution.padding_mode
    return ConvolutionGeometry(axes[0], axes[1], mode, convolution.groups)


def unit_axis(size_px: int) -> Axis:
    """Return the axis of a kernel of one tap that sees every pixel once."""
    return Axis(size_px, size_px, taps=1, stride=1, dilation=1, before=0, after=0)


def sees_each_pixel_once(geometry: ConvolutionGeometry) -> bool:
    """Return whether the kernel is one tap that sees every pixel of the input once."""
    return all(axis == unit_axis(axis.input_px) for axis in (geometry.rows, geometry.columns))


def may_keep_tables(x: Tensor) -> bool:
    """Return whether a table made for `x` may be kept for the next input of its size.

    A compiler must not be handed tensors from outside its graph, and what is made for a tensor
    without memory (a FakeTensor) must not be kept for a real one.
    """
    return type(x) is Tensor and not torch.compiler.is_compiling()


def tap_pixels(places: Tensor, axis: Axis, padding_mode: str) -> tuple[Tensor, Tensor]:
    """Return the input pixel that each tap sees from each output place, and whether it is there.

    Zero padding is there for no tap; the other modes see the pixel that the padding copies.

    Args:
        places: Output rows (or columns), (P,).
        axis: The axis.
        padding_mode: As nn.Conv2d names it.

    Returns:
        Pixels and truth values, both (P, taps).
    """
    taps = torch.arange(axis.taps, device=places.device) * axis.dilation
    pixels = (places * axis.stride - axis.before)[:, None] + taps
    last = axis.input_px - 1
    there = torch.ones_like(pixels, dtype=torch.bool)
    if padding_mode == "zeros":
        there = (pixels >= 0) & (pixels <= last)
    elif padding_mode == "reflect":
        pixels = last - (last - pixels.abs()).abs()
    elif padding_mode == "circular":
        pixels = pixels.remainder(axis.input_px)
    # What is left outside is either a replicated border or is not there.
    return pixels.clamp(0, last), there


def tap_counts(axis: Axis, padding_mode: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Count how often each kernel tap sees each input row (or column), as a (taps, input) matrix.

    It is what corrects the box mean at the border.
    """
    places = torch.arange(axis.output_px, device=device)
    pixels, there = tap_pixels(places, axis, padding_mode)
    counts = torch.zeros(axis.taps, axis.input_px, dtype=dtype, device=device)
    return counts.scatter_add_(1, pixels.T, there.T.to(dtype))


# A model has a few dozen kinds of layer, and frames of a factory a few sizes; a matrix is small.
_kept_tap_counts = functools.lru_cache(maxsize=1024)(tap_counts)


def mean_patch(x: Tensor, geometry: ConvolutionGeometry, dtype: torch.dtype) -> Tensor:
    """Return p, the mean input patch of each group, (G, I, kH, kW): E[y] = <p, w> + bias.

    The padding is separable, so the input is read once, in its own type and memory format: it is
    summed over images and rows, and what is left, a row of each channel for each tap, is tiny.

    Args:
        x: Input of the convolution, (N, G*I, H, W).
        geometry: From `convolution_geometry`.
        dtype: Type of the sums and of the result, float32 or float64.
    """
    if sees_each_pixel_once(geometry):
        # Two thirds of a bottleneck network's layers, and a plain mean is several times as quick.
        return x.mean((0, 2, 3), dtype=dtype).view(geometry.groups, -1, 1, 1)
    count = _kept_tap_counts if may_keep_tables(x) else tap_counts
    columns = count(geometry.columns, geometry.padding_mode, dtype, x.device)
    if geometry.padding_mode == "zeros":
        by_row = torch.stack(_tap_sums(x, geometry.rows, dtype), 1)
        patch = torch.matmul(by_row, columns.T)
    else:
        rows = count(geometry.rows, geometry.padding_mode, dtype, x.device)
        patch = torch.matmul(rows, torch.matmul(x.to(dtype), columns.T).sum(0))
    positions = x.shape[0] * geometry.rows.output_px * geometry.columns.output_px
    return (patch / positions).reshape(geometry.groups, -1, *patch.shape[1:])


def _tap_sums(x: Tensor, rows: Axis, dtype: torch.dtype) -> list[Tensor]:
    """Return the sum over images and over the rows that each tap sees, (C_in, W) a tap.

    With a stride of s a tap sees every s-th row but the first or last few of them. Those that
    begin alike are added up once, so that every row is read once; on a CPU that is quicker than a
    product with tap counts, the more the larger the map, and no copy is made of 16-bit inputs.
    """
    stride = rows.stride
    totals: dict[int, Tensor] = {}
    sums = []
    for tap in range(rows.taps):
        first = tap * rows.dilation - rows.before
        alike = x[:, :, first % stride :: stride]
        if first % stride not in totals:
            totals[first % stride] = alike.sum((0, 2), dtype=dtype)
        seen = totals[first % stride]
        begin = first // stride
        unseen = (alike[:, :, : max(begin, 0)], alike[:, :, max(begin + rows.output_px, 0) :])
        for part in unseen:
            if part.shape[2] > 0:
                seen = seen - part.sum((0, 2), dtype=dtype)
        sums.append(seen)
    return sums


def every_nth_output(
    y: Tensor, geometry: ConvolutionGeometry, stride: int
) -> tuple[Tensor, ConvolutionGeometry]:
    """Return every `stride`-th row and column of the output `y`, and the geometry that makes them.

    Args:
        y: Output of the convolution, (N, C, H_out, W_out).
        geometry: What made it.
        stride: At least 1.
    """
    axes = [
        axis._replace(output_px=-(-axis.output_px // stride), stride=axis.stride * stride)
        for axis in (geometry.rows, geometry.columns)
    ]
    return y[:, :, ::stride, ::stride], geometry._replace(rows=axes[0], columns=axes[1])


def variance_slope(
    x: Tensor, y: Tensor, mean: Tensor, weight_shape: torch.Size, geometry: ConvolutionGeometry
) -> Tensor:
    """Return d sigma^2/dw = (2/M) sum (y - mu) * patch, of the weight's shape (C, I, kH, kW).

    Args:
        x: Input of the convolution, (N, G*I, H, W).
        y: Its output, or a part of it that `geometry` describes, in the type of `x`.
        mean: The output's mean mu, (C,), float32 or float64.
        weight_shape: Shape of the weight.
        geometry: From `convolution_geometry` or `every_nth_output`.
    """
    # Centring and scaling in the one pass of a batch normalization with a variance of one, whose
    # kernel computes in the type of its statistics and rounds to the type of `y` at the end.
    positions = y.numel() // y.shape[1]
    scale = torch.full_like(mean, 2 / positions)
    one = torch.ones_like(mean)
    centred = torch.batch_norm(y, scale, None, mean, one, False, 0.0, 0.0, False)
    axes = (geometry.rows, geometry.columns)
    if all(axis.taps == 1 and axis.before == axis.after == 0 for axis in axes):
        # The pixels that such a kernel sees can be picked out.
        seen = x[:, :, :: axes[0].stride, :: axes[1].stride][:, :, : y.shape[2], : y.shape[3]]
        return _weighted_sum(centred, seen, geometry.groups).view(weight_shape)
    patches = _few_patches(x, geometry, positions, y.shape[1])
    if patches is not None:
        return _weighted_sum(centred, patches, geometry.groups).view(weight_shape)
    return _gradient_of_weight(x, centred, weight_shape, geometry)


def _few_patches(
    x: Tensor, geometry: ConvolutionGeometry, positions: int, channels: int
) -> Tensor | None:
    """Return the patches, (N, G*F, P), where writing them out first is the quicker way."""
    rows, columns = geometry.rows, geometry.columns
    if x.device.type != "cpu":
        # The gradient's kernels walk the whole map, and unfolding copies it first if its memory is
        # channels_last.
        return grid_patches(x, geometry) if positions <= FEW_POSITIONS_ON_A_GPU else None
    # The gradient's kernel took 8 ms for 512x512x3x3 weights at any small number of positions,
    # unfolding 2 ms at 49 and 6 ms at 196, and longer at 392.
    if 2 * positions > channels:
        return None
    taps, dilation = (rows.taps, columns.taps), (rows.dilation, columns.dilation)
    x, padding = _evenly_padded(x, geometry)
    return F.unfold(x, taps, dilation, padding, (rows.stride, columns.stride))


def _evenly_padded(x: Tensor, geometry: ConvolutionGeometry) -> tuple[Tensor, tuple[int, int]]:
    """Return the input, padded where no kernel could do it, and what a kernel is to add."""
    axes = (geometry.rows, geometry.columns)
    if geometry.padding_mode != "zeros" or any(axis.before != axis.after for axis in axes):
        return pad_input(x, geometry), (0, 0)
    return x, (axes[0].before, axes[1].before)


def _gradient_of_weight(
    x: Tensor, centred: Tensor, weight_shape: torch.Size, geometry: ConvolutionGeometry
) -> Tensor:
    """Return the weight's gradient where that of the output is `centred`."""
    x, padding = _evenly_padded(x, geometry)
    gradient: Tensor = conv2d_weight(  # type: ignore[no-untyped-call]
        x,
        weight_shape,
        centred,
        stride=(geometry.rows.stride, geometry.columns.stride),
        padding=padding,
        dilation=(geometry.rows.dilation, geometry.columns.dilation),
        groups=geometry.groups,
    )
    return gradient


def grid_patches(x: Tensor, geometry: ConvolutionGeometry) -> Tensor:
    """Return the patch of each output position, (N, G*F, P), in the type of `x`.

    Nothing of the map is read but the pixels that are seen.

    Args:
        x: Input of the convolution, (N, G*I, H, W).
        geometry: From `convolution_geometry` or `every_nth_output`.
    """
    choose = _kept_grid_pixels if may_keep_tables(x) else _grid_pixels
    rows, columns, there = choose(geometry, x.device)
    pixels = x[:, :, rows, columns]
    if there is not None:
        pixels = pixels.where(there, 0)
    return pixels.flatten(4).flatten(1, 3)


def _grid_pixels(
    geometry: ConvolutionGeometry, device: torch.device
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return rows, columns and whether they are there, broadcasting to (kH, kW, H_out, W_out)."""
    mode = geometry.padding_mode
    (rows, row_there), (columns, column_there) = (
        tap_pixels(torch.arange(axis.output_px, device=device), axis, mode)
        for axis in (geometry.rows, geometry.columns)
    )
    there = row_there.T[:, None, :, None] & column_there.T[None, :, None]
    padded = mode == "zeros" and any(
        axis.before or axis.after for axis in (geometry.rows, geometry.columns)
    )
    return rows.T[:, None, :, None], columns.T[None, :, None], there if padded else None


_kept_grid_pixels = functools.lru_cache(maxsize=1024)(_grid_pixels)


def _weighted_sum(weights: Tensor, patches: Tensor, groups: int) -> Tensor:
    """Return the sum of patches over images and positions for each output channel, (G, C/G, F).

    Args:
        weights: What a patch counts in each channel, (N, C, ...).
        patches: Patches at the same positions, (N, G*F, ...).
        groups: G.
    """
    # A view where memory is channels_last or the batch is one image.
    by_channel, by_tap = (values.transpose(0, 1).flatten(1) for values in (weights, patches))
    by_channel, by_tap = (
        values.view(groups, -1, values.shape[1]) for values in (by_channel, by_tap)
    )
    return torch.bmm(by_channel, by_tap.transpose(1, 2))


def pad_input(x: Tensor, geometry: ConvolutionGeometry) -> Tensor:
    """Return `x` with the convolution's padding written out."""
    rows, columns = geometry.rows, geometry.columns
    amounts = [columns.before, columns.after, rows.before, rows.after]
    mode = "constant" if geometry.padding_mode == "zeros" else geometry.padding_mode
    return F.pad(x, amounts, mode=mode)


def mean_response(patches: Tensor, weight: Tensor) -> Tensor:
    """Return <p, w> for each output channel, (T, C), from flat patches (T, G, I*kH*kW)."""
    by_group = weight.reshape(patches.shape[1], -1, patches.shape[2])
    response = torch.bmm(patches.transpose(0, 1), by_group.transpose(1, 2))
    return response.transpose(0, 1).flatten(1)


def slope_response(slopes: Tensor, weight: Tensor) -> Tensor:
    """Return <D, w> for each output channel, (T, C), from flat slopes (C, T, I*kH*kW).

    Slopes of a lower precision are widened first: rounding the weight instead would hide the small
    changes that the Taylor step is about.
    """
    # Measured on a weight of 512x4608 and seven slopes: this product reads memory at its speed and
    # took a tenth of the time of torch.linalg.vecdot, which writes out every product.
    rows = weight.flatten(1)[:, None]
    return torch.bmm(rows, slopes.to(weight.dtype).transpose(1, 2))[:, 0].T


@torch.no_grad()
def observed_padding_rule(convolution: nn.Conv2d, x: Tensor, output: Tensor) -> PaddingRule | None:
    """Find by computation which padding rule explains `output`; None if neither does.

    A Conv2d subclass may pad for itself or change its weight on the way. One run of
    the plain convolution tells: where a rule reproduces the output, the moments above hold.
    """
    x, output = x.detach(), output.detach()
    for rule in PADDING_RULES:
        geometry = convolution_geometry(convolution, x, (output.shape[2], output.shape[3]), rule)
        stride, dilation = convolution.stride, convolution.dilation
        try:
            padded = pad_input(x, geometry)
            expected = F.conv2d(
                padded, convolution.weight, convolution.bias, stride, 0, dilation, geometry.groups
            )
        except RuntimeError:
            # The rule asks for padding that this input is too small for.
            continue
        # Both sides ran the same kernel on the same numbers; the margin is for another algorithm
        # being chosen for another padding, in the precision of the activations.
        margin = 64 * torch.finfo(output.dtype).eps * float(output.abs().max())
        if expected.shape == output.shape and float((expected - output).abs().max()) <= margin:
            return rule
    return None
