"""How the mean and variance of a convolution's output depend on its weight.

For y = conv(x, w) over M positions both are inner products with tensors that are cheap to have:
the mean is <p, w> with p the mean input patch, and d sigma^2/dw is a weight-gradient convolution
of the centred output. Nothing here runs autograd.

Shapes: groups G, input channels a group I, output channels C, kernel kH x kW.
"""

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


def tap_counts(axis: Axis, padding_mode: str, like: Tensor) -> Tensor:
    """Count how often each kernel tap sees each input row (or column), as a (taps, input) matrix.

    Zero padding sees nothing; the other modes see the pixel that the padding copies. This is what
    corrects the box mean at the border.
    """
    device = like.device
    outputs = torch.arange(axis.output_px, device=device) * axis.stride - axis.before
    seen = outputs + torch.arange(axis.taps, device=device)[:, None] * axis.dilation
    last = axis.input_px - 1
    weight = torch.ones_like(seen, dtype=like.dtype)
    if padding_mode == "zeros":
        weight = ((seen >= 0) & (seen <= last)).to(like.dtype)
    elif padding_mode == "reflect":
        seen = last - (last - seen.abs()).abs()
    elif padding_mode == "circular":
        seen = seen.remainder(axis.input_px)
    # What is left outside is either a replicated border or carries no weight.
    counts = torch.zeros(axis.taps, axis.input_px, dtype=like.dtype, device=device)
    return counts.scatter_add_(1, seen.clamp(0, last), weight)


def mean_patch(x: Tensor, geometry: ConvolutionGeometry) -> Tensor:
    """Return p, the mean input patch of each group, (G, I, kH, kW): E[y] = <p, w> + bias.

    The padding is separable, so the input is read once: a product with the narrower of the two
    tap-count matrices, whose result is tiny.

    Args:
        x: Input of the convolution, (N, G*I, H, W), float32 or float64.
        geometry: From `convolution_geometry`.
    """
    rows = tap_counts(geometry.rows, geometry.padding_mode, x)
    columns = tap_counts(geometry.columns, geometry.padding_mode, x)
    n, channels, height, width = x.shape
    if x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
        # Rows first: in this format a row of all channels is contiguous and nothing is copied.
        lines = x.permute(0, 2, 3, 1).reshape(n, height, width * channels)
        by_row = torch.matmul(rows, lines).sum(0).view(-1, width, channels)
        patch = torch.einsum("kwc,lw->ckl", by_row, columns)
    else:
        by_column = torch.matmul(x, columns.T).sum(0)
        patch = torch.einsum("kh,chl->ckl", rows, by_column)
    positions = n * geometry.rows.output_px * geometry.columns.output_px
    return (patch / positions).reshape(geometry.groups, -1, *patch.shape[1:])


def variance_slope(
    x: Tensor, centred: Tensor, weight_shape: torch.Size, geometry: ConvolutionGeometry
) -> Tensor:
    """Return d sigma^2/dw = (2/M) sum (y - mu) * patch, of the weight's shape (C, I, kH, kW).

    Args:
        x: Input of the convolution, (N, G*I, H, W).
        centred: y - mu in the type of `x`, (N, C, H_out, W_out).
        weight_shape: Shape of the weight.
        geometry: From `convolution_geometry`.
    """
    axes = (geometry.rows, geometry.columns)
    padding = [axis.before for axis in axes]
    if geometry.padding_mode != "zeros" or any(axis.before != axis.after for axis in axes):
        x = pad_input(x, geometry)
        padding = [0, 0]
    positions = centred.numel() // centred.shape[1]
    gradient: Tensor = conv2d_weight(  # type: ignore[no-untyped-call]
        x,
        weight_shape,
        centred,
        stride=[axis.stride for axis in axes],
        padding=padding,
        dilation=[axis.dilation for axis in axes],
        groups=geometry.groups,
    )
    return gradient * (2 / positions)


def pad_input(x: Tensor, geometry: ConvolutionGeometry) -> Tensor:
    """Return `x` with the convolution's padding written out."""
    rows, columns = geometry.rows, geometry.columns
    amounts = [columns.before, columns.after, rows.before, rows.after]
    mode = "constant" if geometry.padding_mode == "zeros" else geometry.padding_mode
    return F.pad(x, amounts, mode=mode)


def mean_response(patches: Tensor, weight: Tensor) -> Tensor:
    """Return <p, w> for each output channel, (T, C), from flat patches (T, G, I*kH*kW)."""
    by_group = weight.reshape(patches.shape[1], -1, patches.shape[2])
    return torch.einsum("tgf,gof->tgo", patches, by_group).flatten(1)


def slope_response(slopes: Tensor, weight: Tensor) -> Tensor:
    """Return <D, w> for each output channel, (T, C), from flat slopes (T, C, I*kH*kW)."""
    # An einsum here becomes one small matrix product a channel, several times as slow.
    response: Tensor = torch.linalg.vecdot(slopes, weight.flatten(1))
    return response


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
