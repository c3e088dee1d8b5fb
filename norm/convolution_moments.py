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


def tap_counts(axis: Axis, padding_mode: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Count how often each kernel tap sees each input row (or column), as a (taps, input) matrix.

    Zero padding sees nothing; the other modes see the pixel that the padding copies. This is what
    corrects the box mean at the border.
    """
    outputs = torch.arange(axis.output_px, device=device) * axis.stride - axis.before
    seen = outputs + torch.arange(axis.taps, device=device)[:, None] * axis.dilation
    last = axis.input_px - 1
    weight = torch.ones_like(seen, dtype=dtype)
    if padding_mode == "zeros":
        weight = ((seen >= 0) & (seen <= last)).to(dtype)
    elif padding_mode == "reflect":
        seen = last - (last - seen.abs()).abs()
    elif padding_mode == "circular":
        seen = seen.remainder(axis.input_px)
    # What is left outside is either a replicated border or carries no weight.
    counts = torch.zeros(axis.taps, axis.input_px, dtype=dtype, device=device)
    return counts.scatter_add_(1, seen.clamp(0, last), weight)


# A model has a few dozen kinds of layer, and frames of a factory a few sizes; a matrix is small.
_kept_tap_counts = functools.lru_cache(maxsize=1024)(tap_counts)


def mean_patch(x: Tensor, geometry: ConvolutionGeometry) -> Tensor:
    """Return p, the mean input patch of each group, (G, I, kH, kW): E[y] = <p, w> + bias.

    The padding is separable, so the input is read once: a product with the narrower of the two
    tap-count matrices, whose result is tiny.

    Args:
        x: Input of the convolution, (N, G*I, H, W), float32 or float64.
        geometry: From `convolution_geometry`.
    """
    if all(axis == unit_axis(axis.input_px) for axis in (geometry.rows, geometry.columns)):
        # Two thirds of a bottleneck network's layers, and a plain mean is several times as quick.
        return x.mean((0, 2, 3)).view(geometry.groups, -1, 1, 1)
    # A compiler must not be handed tensors from outside its graph, and what is made for a tensor
    # without memory (a FakeTensor) must not be kept for a real one.
    fresh = torch.compiler.is_compiling() or type(x) is not Tensor
    count = tap_counts if fresh else _kept_tap_counts
    rows = count(geometry.rows, geometry.padding_mode, x.dtype, x.device)
    columns = count(geometry.columns, geometry.padding_mode, x.dtype, x.device)
    n, channels, height, width = x.shape
    if geometry.padding_mode == "zeros" and geometry.rows.stride == 1:
        by_row = torch.stack(_tap_sums(x, geometry.rows), 1)
        patch = torch.matmul(by_row, columns.T)
    elif x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
        # Rows first: in this format a row of all channels is contiguous and nothing is copied.
        lines = x.permute(0, 2, 3, 1).reshape(n, height, width * channels)
        by_row = torch.matmul(rows, lines).sum(0).view(-1, width, channels)
        patch = torch.matmul(columns, by_row).permute(2, 0, 1)
    else:
        by_column = torch.matmul(x, columns.T).sum(0)
        patch = torch.matmul(rows, by_column)
    positions = n * geometry.rows.output_px * geometry.columns.output_px
    return (patch / positions).reshape(geometry.groups, -1, *patch.shape[1:])


def _tap_sums(x: Tensor, rows: Axis) -> list[Tensor]:
    """Return the sum over images and over the rows that each tap sees, (C_in, W) a tap.

    Without a stride a tap sees every row but the first or last few, so all of them are added up
    once. On a CPU that is quicker than a product with tap counts, the more the larger the map.
    """
    total = x.sum((0, 2))
    sums = []
    for tap in range(rows.taps):
        first = tap * rows.dilation - rows.before
        unseen = (x[:, :, : max(first, 0)], x[:, :, max(first + rows.output_px, 0) :])
        seen = total
        for part in unseen:
            if part.shape[2] > 0:
                seen = seen - part.sum((0, 2))
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
    axes = (geometry.rows, geometry.columns)
    padding = (geometry.rows.before, geometry.columns.before)
    if geometry.padding_mode != "zeros" or any(axis.before != axis.after for axis in axes):
        x = pad_input(x, geometry)
        padding = (0, 0)
    # Centring and scaling in the one pass of a batch normalization with a variance of one, whose
    # kernel computes in the type of its statistics and rounds to the type of `y` at the end.
    positions = y.numel() // y.shape[1]
    scale = torch.full_like(mean, 2 / positions)
    one = torch.ones_like(mean)
    centred = torch.batch_norm(y, scale, None, mean, one, False, 0.0, 0.0, False)
    stride = (geometry.rows.stride, geometry.columns.stride)
    dilation = (geometry.rows.dilation, geometry.columns.dilation)
    if all(axis.taps == 1 and axis.before == axis.after == 0 for axis in axes):
        # The pixels that such a kernel sees can be picked out.
        seen = x[:, :, :: stride[0], :: stride[1]][:, :, : y.shape[2], : y.shape[3]]
        return _weighted_sum(centred, seen, geometry.groups).view(weight_shape)
    if 2 * positions <= y.shape[1]:
        # On a CPU the gradient's kernel took 8 ms for 512x512x3x3 weights at any small number of
        # positions, writing patches out first 2 ms at 49 and 6 ms at 196, and longer at 392.
        taps = (geometry.rows.taps, geometry.columns.taps)
        patches = F.unfold(x, taps, dilation, padding, stride)
        return _weighted_sum(centred, patches, geometry.groups).view(weight_shape)
    gradient: Tensor = conv2d_weight(  # type: ignore[no-untyped-call]
        x,
        weight_shape,
        centred,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=geometry.groups,
    )
    return gradient


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
