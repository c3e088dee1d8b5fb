"""Statistics, their Taylor step, their pooling, and normalization with a choice of gradient.

Shapes: N images, C channels, H and W output rows and columns, M = N*H*W positions, T past
iterations. Statistics are float32 for float16, bfloat16 and float32 activations and float64 for
float64 ones. Variances are population variances (divided by M) unless a name says `unbiased`.
"""

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

VarianceForm = Literal["centred", "paper"]
GradientForm = Literal["full", "paper"]


class BatchStatistics(NamedTuple):
    """Mean and population variance of one batch, both (C,), over `positions` values a channel."""

    mean: Tensor
    variance: Tensor
    positions: int


class PooledStatistics(NamedTuple):
    """Mean and variance of a window, both (C,), and today's share of its weight, (C,)."""

    mean: Tensor
    variance: Tensor
    share: Tensor


class WindowEstimates(NamedTuple):
    """What past iterations say about today's weights: means, variances and weights, all (T, C).

    A weight is the number of positions the estimate stands for; 0 leaves the estimate out. It is
    kept for each channel so that a channel whose estimate cannot be trusted drops out alone.
    """

    means: Tensor
    variances: Tensor
    weights: Tensor


class Normalizer(NamedTuple):
    """What the forward pass divides by, and what the backward pass treats as the batch's own.

    Attributes:
        mean: Mean of the forward pass, (C,).
        variance: Variance of the forward pass with eps already added, (C,).
        gradient_mean: Mean of the backward pass, (C,).
        gradient_variance: Variance of the backward pass with eps already added, (C,).
        share: Share of the statistics that follows today's activations, (C,); None stands for 1.
    """

    mean: Tensor
    variance: Tensor
    gradient_mean: Tensor
    gradient_variance: Tensor
    share: Tensor | None


def no_estimates(today: BatchStatistics) -> WindowEstimates:
    """Return the estimates of an empty past, (0, C) each."""
    nothing = today.mean.new_empty((0, *today.mean.shape))
    return WindowEstimates(nothing, nothing, nothing)


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the type statistics are held in for activations or weights of type `dtype`."""
    return torch.promote_types(dtype, torch.float32)


def batch_statistics(y: Tensor) -> BatchStatistics:
    """Return the statistics of activations `y` (N, C, H, W) over N, H and W."""
    dtype = statistics_dtype(y.dtype)
    # The kernel rounds its results to the type of the running statistics it is given, and to the
    # type of `y` when it is given none: bfloat16 statistics would lose all but eight bits.
    placeholder = torch.zeros(y.shape[1], dtype=dtype, device=y.device)
    mean, variance = torch.batch_norm_update_stats(y, placeholder, placeholder.clone(), 0.0)
    return BatchStatistics(mean, variance, y.numel() // y.shape[1])


def taylor_means(means: Tensor, then: Tensor, now: Tensor, rho: float) -> Tensor:
    """Move past means to today's weights (arXiv 2002.05712, eq. 7).

    The mean is linear in the weight, so with `rho` = 1 this is exact.

    Args:
        means: Measured means mu_tau, (T, C).
        then: <p_tau, w_tau>, the mean patch's response to the weights of its own day, (T, C).
        now: <p_tau, w_t>, its response to today's weights, (T, C).
        rho: Length of the step; 0 is naive cross-iteration batch normalization.
    """
    return torch.add(means, now - then, alpha=rho)


def taylor_variances(
    variances: Tensor, then: Tensor, now: Tensor, mean_shifts: Tensor, *, rho: float, form: str
) -> Tensor:
    """Move past variances to today's weights, never below zero (arXiv 2002.05712, eqs. 8 and 11).

    The paper steps E[y^2] and subtracts the stepped mean's square. Written with the slope
    D = d sigma^2/dw that is sigma^2 + rho <D, w_t - w_tau> less the square of the mean's shift, a
    second-order term of the wrong sign. The centred form leaves the term out.

    Args:
        variances: Measured variances, (T, C).
        then: <D_tau, w_tau>, (T, C).
        now: <D_tau, w_t>, (T, C).
        mean_shifts: What `taylor_means` added to the means, (T, C).
        rho: Length of the step.
        form: "centred" or "paper".
    """
    stepped = torch.add(variances, now - then, alpha=rho)
    if form == "paper":
        stepped = stepped - mean_shifts.square()
    return stepped.clamp_min(0)


def trust(
    today: BatchStatistics, past: WindowEstimates, *, d_max: float, r_max: float, eps: float
) -> WindowEstimates:
    """Leave out, channel by channel, the estimates that today's own statistics contradict.

    A first-order step is no guide once weights have moved far, and it knows nothing of what earlier
    layers did; the pooled statistics then normalize today's activations badly, and training stalls
    where batch normalization trains. An estimate stays while its mean lies within `d_max` of
    today's deviations from today's mean and its deviation within a factor `r_max` of today's, which
    are Batch Renormalization's bounds (arXiv 1702.03275) put to another use. Where none stays, the
    channel is batch normalization.

    A single value a channel has no deviation to judge by, and every estimate stays.

    Args:
        today: Today's statistics, (C,).
        past: The estimates, (T, C).
        d_max: In today's deviations; infinity leaves no mean out.
        r_max: At least 1; infinity leaves no deviation out.
        eps: Added to both variances, as for the output.
    """
    if today.positions == 1:
        return past
    variance = today.variance + eps
    near = (past.means - today.mean).square() <= d_max**2 * variance
    ratio = (past.variances + eps) / variance
    like = (ratio <= r_max**2) & (ratio >= r_max**-2)
    return past._replace(weights=past.weights * (near & like))


def pool(today: BatchStatistics, past: WindowEstimates) -> PooledStatistics:
    """Pool today's statistics with past estimates, weighted by positions (arXiv 2002.05712, eq. 9).

    The variance is the mean variance plus the variance of the means, never E[y^2] - E[y]^2.
    Deviation from the paper: entries weigh by their number of positions, for frames of several
    sizes; for equal sizes that is the paper's 1/k. An estimate that is not finite (a forward pass
    that overflowed) is left out, so one bad batch does not last for a whole window.
    """
    # A weight of zero is not enough: zero times a stored NaN is NaN. Not torch.isfinite, which is
    # five operators; their number is what this function costs, with few numbers in each.
    usable = ((past.means + past.variances).abs() < math.inf) & (past.weights > 0)
    weights = past.weights.where(usable, 0)
    shifts = (past.means - today.mean).where(usable, 0)
    total = weights.sum(0) + today.positions
    shares, own = weights / total, today.positions / total
    # Means count from today's, so that nothing large is added up.
    shift = (shares * shifts).sum(0)
    apart = shifts - shift
    within = torch.addcmul(past.variances.where(usable, 0), apart, apart)
    variance = torch.addcmul(
        (shares * within).sum(0), own, torch.addcmul(today.variance, shift, shift)
    )
    return PooledStatistics(today.mean + shift, variance, own)


def pooled_normalizer(
    today: BatchStatistics, pooled: PooledStatistics, *, eps: float, gradient: GradientForm
) -> Normalizer:
    """Normalize with pooled statistics and either gradient; the forward values are the same.

    "paper" lets today's share of the pooled statistics follow the activations, which is batch
    normalization's gradient with M replaced by k*M. "full" writes the same output as
    (y - mu_B) / sigma_B * r + d with r = sigma_B / sigma and d = (mu_B - mu) / sigma held constant
    (arXiv 1702.03275), which keeps the whole of batch normalization's gradient.
    """
    variance = pooled.variance + eps
    if gradient == "paper":
        return Normalizer(pooled.mean, variance, pooled.mean, variance, pooled.share)
    return Normalizer(pooled.mean, variance, today.mean, today.variance + eps, None)


def renormalizer(
    today: BatchStatistics,
    running_mean: Tensor,
    running_variance: Tensor,
    *,
    eps: float,
    r_max: Tensor,
    d_max: Tensor,
) -> Normalizer:
    """Normalize with the batch's statistics corrected towards the running ones.

    Batch Renormalization (arXiv 1702.03275, algorithm 1): the correction is r = clip(sigma_B /
    sigma, 1 / r_max, r_max) and d = clip((mu_B - mu) / sigma, -d_max, d_max), both constants of the
    gradient. It is returned as the mean and variance that give the same output.

    Args:
        today: The batch's statistics.
        running_mean: mu, (C,).
        running_variance: sigma^2, (C,).
        eps: Added to both variances.
        r_max: Largest correction of the deviation, a scalar tensor of at least 1.
        d_max: Largest correction of the mean in deviations, a scalar tensor of at least 0.
    """
    batch_variance = today.variance + eps
    deviation = (running_variance + eps).sqrt()
    r = (batch_variance.sqrt() / deviation).clamp(1 / r_max, r_max)
    d = ((today.mean - running_mean) / deviation).clamp(-d_max, d_max)
    variance = batch_variance / r.square()
    mean = today.mean - d * variance.sqrt()
    return Normalizer(mean, variance, today.mean, batch_variance, None)


def normalize(
    y: Tensor, weight: Tensor | None, bias: Tensor | None, normalizer: Normalizer
) -> Tensor:
    """Return gamma * (y - mean) / sqrt(variance) + beta in the type and memory format of `y`.

    Differentiable once, in `y`, `weight` and `bias`; the normalizer is a constant except through
    the gradient form it describes.

    Args:
        y: Activations, (N, C, H, W).
        weight: gamma, (C,), or None for 1.
        bias: beta, (C,), or None for 0.
        normalizer: Statistics of both passes, in `statistics_dtype(y.dtype)`.
    """
    # An operator passes through torch.compile as it is, so a compiled model runs the kernels that
    # the uncompiled one does. Called directly it took 0.2 ms on a CPU, a function of autograd 0.04.
    apply = normalize_operator if torch.compiler.is_compiling() else _Normalize.apply
    output: Tensor = apply(y, weight, bias, *normalizer)[0]
    return output


def _normalize_forward(
    y: Tensor, weight: Tensor | None, bias: Tensor | None, normalizer: Normalizer
) -> tuple[Tensor, Tensor]:
    """Return the output and what the backward pass needs, (5, C), or (6, C) with a share.

    Its rows are the mean and 1 / sigma of the backward pass, r = sigma_B / sigma, d, gamma r and
    the share. They are an output, because a compiler may compute anything else again in the
    backward pass, and that from running statistics and windows that have moved since.
    """
    mean, variance, gradient_mean, gradient_variance, share = normalizer
    gamma = None if weight is None else weight.to(mean.dtype)
    beta = None if bias is None else bias.to(mean.dtype)
    # eps is in the variance already, and F.batch_norm refuses an eps of zero.
    output = torch.batch_norm(y, gamma, beta, mean, variance, False, 0.0, 0.0, False)
    inverse, gradient_inverse = variance.rsqrt(), gradient_variance.rsqrt()
    r = inverse / gradient_inverse
    d = (gradient_mean - mean) * inverse
    rows = [gradient_mean, gradient_inverse, r, d, r if gamma is None else gamma * r]
    return output, torch.stack(rows if share is None else [*rows, share])


def _save_for_backward(
    ctx: Any, inputs: tuple[Tensor | None, ...], output: tuple[Tensor, Tensor]
) -> None:
    y, weight, bias, *_ = inputs
    ctx.save_for_backward(y, weight, output[1])
    ctx.bias_dtype = None if bias is None else bias.dtype


def normalize_backward(
    ctx: Any, gradient: Tensor, _: Tensor | None = None
) -> tuple[Tensor | None, ...]:
    """Return (1 - s) times the gradient of frozen statistics plus s times batch normalization's.

    s is the share; both come from the kernels that nn.BatchNorm2d runs.
    """
    y, weight, rows = ctx.saved_tensors
    mean, inverse, r, d, gamma_r, *share = rows.unbind()
    # The kernel multiplies by gamma / sigma_B; r = sigma_B / sigma makes that gamma / sigma.
    y_gradient, raw_weight_gradient, bias_gradient = torch.ops.aten.native_batch_norm_backward(
        gradient, y, gamma_r, None, None, mean, inverse, True, 0.0, [True, True, True]
    )
    if share:
        frozen = gradient * ((1 - share[0]) * gamma_r * inverse).view(1, -1, 1, 1)
        y_gradient = torch.addcmul(frozen, y_gradient, share[0].view(1, -1, 1, 1)).to(y.dtype)
    weight_gradient = None
    if weight is not None:
        weight_gradient = torch.addcmul(r * raw_weight_gradient, d, bias_gradient).to(weight.dtype)
    bias_gradient = None if ctx.bias_dtype is None else bias_gradient.to(ctx.bias_dtype)
    return y_gradient, weight_gradient, bias_gradient, None, None, None, None, None


class _Normalize(torch.autograd.Function):
    """Normalization whose backward pass uses its own statistics and a share of BN's projection."""

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, weight: Tensor | None, bias: Tensor | None, *normalizer: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        output = _normalize_forward(y, weight, bias, Normalizer(*normalizer))  # type: ignore[arg-type]  # The share alone may be None.
        ctx.mark_non_differentiable(output[1])
        _save_for_backward(ctx, (y, weight, bias, *normalizer), output)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        return normalize_backward(ctx, *gradients)


@torch.library.custom_op("hairline::normalize", mutates_args=())
def normalize_operator(
    y: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    gradient_mean: Tensor,
    gradient_variance: Tensor,
    share: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Normalize as `normalize` does, with the fields of `Normalizer` spread out."""
    normalizer = Normalizer(mean, variance, gradient_mean, gradient_variance, share)
    return _normalize_forward(y, weight, bias, normalizer)


@normalize_operator.register_fake
def _(y: Tensor, *others: Tensor | None) -> tuple[Tensor, Tensor]:
    mean, share = others[2], others[-1]
    assert mean is not None
    return torch.empty_like(y), mean.new_empty(5 if share is None else 6, *mean.shape)


normalize_operator.register_autograd(normalize_backward, setup_context=_save_for_backward)
