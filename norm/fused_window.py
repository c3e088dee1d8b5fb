"""Cross-iteration batch normalization on a GPU in five launches a forward pass.

The layer's arithmetic is a few numbers a channel in a hundred operators, and launching those one by
one took longer on a GPU than the convolutions did. What is computed is
`CrossIterationBatchNorm2d`'s plain path, which stays the reference and the only one on a CPU. Sums
are added up in another order, so the two agree to float32's rounding.

1. `gpu_reading`: the output and the input are read once, for moments and for the mean patch.
2. `gpu_statistics`: the window at today's weight, trust, pool, running statistics.
3. The normalization itself, PyTorch's own kernel.
4. `gpu_slopes`: today's slope into the ring.
5. `gpu_slopes`: the mean patch, the responses and the finished slope into the ring.
"""

import functools
import importlib.util
import logging
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .convolution_moments import PaddingRule, convolution_geometry
from .functional import BatchStatistics, GradientForm, Normalizer, normalize_backward
from .gpu_launches import Call, Plan, make_plan
from .observation import SMALLEST_SAMPLED_VARIANCE
from .window import RingWindow

logger = logging.getLogger(__name__)

# Beyond this a sampled slope is no small part of the step, and the gradient's kernel is quicker.
_MOST_SLOPE_POSITIONS = 4096
_ACTIVATION_TYPES = (torch.float32, torch.bfloat16, torch.float16)


class Rows(NamedTuple):
    """What a forward pass leaves for itself and for the backward pass, one row a quantity.

    They are the rows of one tensor (14, C): the first five or six are what
    `functional.normalize_backward` needs. `entry` holds one number.
    """

    gradient_mean: Tensor
    gradient_inverse: Tensor
    r: Tensor
    d: Tensor
    gamma_r: Tensor
    share: Tensor
    mean: Tensor
    inverse: Tensor
    variance: Tensor
    gradient_variance: Tensor
    today_mean: Tensor
    today_variance: Tensor
    entry: Tensor
    left: Tensor


@functools.cache
def missing_kernels(device: torch.device) -> str | None:
    """Return why the kernels can't be built for a GPU, or None where they can.

    Without them the layer computes the same, operator by operator, in several times the time.

    Args:
        device: Of type "cuda".
    """
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed; it comes with torch's builds for GPUs"
    answer = torch.zeros(1, device=device)
    try:
        from .gpu_slopes import probe_kernel

        probe_kernel[(1, 1, 1)](answer)
    except Exception as error:  # noqa: BLE001 - whatever a compiler, driver or disk may raise.
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        return f"Triton can't build kernels here, which needs a C compiler: {reason}"
    return None if float(answer) == 1 else "a kernel that Triton built gives a wrong answer"


@functools.cache
def _has_kernels(device: torch.device) -> bool:
    reason = missing_kernels(device)
    if reason is not None:
        logger.warning("Normalization on %s is several times slower: %s", device, reason)
    return reason is None


def takes_activations(y: Tensor) -> bool:
    """Return whether the kernels read a convolution's output `y` (N, C, H, W) as it is."""
    return (
        y.is_cuda
        and type(y) is Tensor
        and y.dtype in _ACTIVATION_TYPES
        and y.is_contiguous(memory_format=torch.channels_last)
        and y.numel() > y.shape[1]
        # Triton launches on the current device, whose memory it must be.
        and y.device.index == torch.cuda.current_device()
        and _has_kernels(y.device)
    )


def takes_layer(
    norm: nn.BatchNorm2d, convolution: nn.Conv2d, window: nn.Module, device: torch.device
) -> bool:
    """Return whether the kernels know the layer's window, parameters and running statistics."""
    if not isinstance(window, RingWindow) or window.stored_dtypes:
        return False
    if window.slope_positions is None or window.slope_positions > _MOST_SLOPE_POSITIONS:
        return False
    tensors = (
        norm.weight,
        norm.bias,
        convolution.weight,
        convolution.bias,
        norm.running_mean,
        norm.running_var,
    )
    return (
        norm.running_mean is not None
        and norm.momentum is not None
        and convolution.padding_mode == "zeros"
        and all(t is None or (t.dtype == torch.float32 and t.device == device) for t in tensors)
    )


# By hand: a plan is made from the convolution, which no cache may keep alive.
_plans: dict[Call, Plan] = {}
_MOST_PLANS = 4096


def observe(
    norm: nn.BatchNorm2d,
    convolution: nn.Conv2d,
    rule: PaddingRule,
    window: RingWindow,
    x: Tensor,
    y: Tensor,
    *,
    d_max: float,
    r_max: float,
    gradient: GradientForm,
) -> Tensor:
    """Take a forward pass into window and running statistics; return what normalizes it.

    Args:
        norm: The layer; `takes_layer` has said yes.
        convolution: What made `y`.
        rule: How it pads.
        window: The layer's.
        x: The convolution's input.
        y: Its output; `takes_activations` has said yes.
        d_max: See `functional.trust`.
        r_max: The same.
        gradient: See `functional.pooled_normalizer`.

    Returns:
        `Rows` as one tensor (14, C).
    """
    if not x.is_contiguous(memory_format=torch.channels_last):
        x = x.contiguous(memory_format=torch.channels_last)
    weight, bias, gamma = convolution.weight, convolution.bias, norm.weight
    plan = _plan_for(convolution, rule, window, x, y, gamma, gradient)
    moments = torch.empty(plan.moments_shape, dtype=torch.float32, device=y.device)
    sums = torch.empty(plan.sums_shape, dtype=torch.float32, device=y.device)
    past, next_entry = _ring_of(window)
    rows = torch.empty((14, y.shape[1]), dtype=torch.float32, device=y.device)
    total = torch.empty(plan.sums_shape[1], dtype=torch.float32, device=y.device)
    plan.read(y, x, plan.row_counts, plan.column_counts, moments, sums)
    moving = (norm.running_mean, norm.running_var, norm.num_batches_tracked)
    limits = (d_max**2, r_max**2, r_max**-2)
    plan.consult(
        *(moments, rows, weight, bias, gamma, *past, next_entry, *moving),
        then=(window.rho, norm.eps, norm.momentum, *limits),
    )
    plan.slope(x, y, rows, window.variance_slopes, sums, total)
    plan.record(rows, total, weight, bias, *past, then=(SMALLEST_SAMPLED_VARIANCE,))
    return rows


def _ring_of(window: RingWindow) -> tuple[tuple[Tensor | None, ...], Tensor | None]:
    """Return the ring's tensors in the kernels' order, and the number of its next entry."""
    ring = window._buffers  # noqa: SLF001 - by attribute each takes a microsecond.
    past = (
        ring["positions"],
        ring["means"],
        ring["variances"],
        ring["mean_patches"],
        ring["mean_responses"],
        ring["variance_slopes"],
        ring["slope_responses"],
    )
    return past, ring["next_entry"]


def _plan_for(
    convolution: nn.Conv2d,
    rule: PaddingRule,
    window: RingWindow,
    x: Tensor,
    y: Tensor,
    gamma: Tensor | None,
    gradient: GradientForm,
) -> Plan:
    call = Call(
        x.shape,
        y.shape,
        x.dtype,
        y.dtype,
        y.device,
        convolution.kernel_size,
        convolution.stride,
        convolution.padding,
        convolution.dilation,
        convolution.groups,
        rule,
        convolution.weight.stride(),
        window.length,
        window.slope_positions or 0,
        x.data_ptr() % 16 == 0 and y.data_ptr() % 16 == 0,
        convolution.bias is not None,
        gamma is not None,
        window.form == "paper",
        gradient == "paper",
    )
    plan = _plans.get(call)
    if plan is None:
        if len(_plans) >= _MOST_PLANS:
            _plans.clear()
        geometry = convolution_geometry(convolution, x, (y.shape[2], y.shape[3]), rule)
        plan = _plans[call] = make_plan(call, geometry)
    return plan


@dataclass(frozen=True)
class PackedPass:
    """What a forward pass measured and normalized with.

    Attributes:
        rows: `Rows` as `observe` returned them, (14, C).
        positions: Values a channel, M.
        has_share: Whether a share of the statistics follows the activations, as the paper's
            gradient has it.
    """

    rows: Tensor
    positions: int
    has_share: bool

    def unpack(self) -> tuple[BatchStatistics, Normalizer]:
        """Return it in the terms of the plain path, as views of the rows."""
        found = Rows(*self.rows.unbind())
        today = BatchStatistics(found.today_mean, found.today_variance, self.positions)
        return today, Normalizer(
            found.mean,
            found.variance,
            found.gradient_mean,
            found.gradient_variance,
            found.share if self.has_share else None,
        )


def normalize_packed(
    y: Tensor, weight: Tensor | None, bias: Tensor | None, packed: PackedPass
) -> Tensor:
    """Return what `functional.normalize` would, from what `observe` has worked out already."""
    output: Tensor = _NormalizeByRows.apply(y, weight, bias, packed.rows, packed.has_share)
    return output


class _NormalizeByRows(torch.autograd.Function):
    """`functional.normalize` without its arithmetic on statistics, which the kernels have done."""

    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        rows: Tensor,
        has_share: bool,
    ) -> Tensor:
        ctx.save_for_backward(y, weight, rows[: 6 if has_share else 5])
        ctx.bias_dtype = None if bias is None else bias.dtype
        if y.is_cuda:
            output: Tensor = torch.batch_norm_elemt(y, weight, bias, rows[6], rows[7], 0.0)
            return output
        # The kernel is of CUDA alone; on a CPU, Triton's interpreter stands in for a GPU.
        return torch.batch_norm(y, weight, bias, rows[6], rows[8], False, 0.0, 0.0, False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return (*normalize_backward(ctx, gradient)[:3], None, None)
