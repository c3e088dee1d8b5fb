"""Cross-iteration batch normalization (Yao et al., arXiv 2002.05712)."""

from typing import Self, get_args

import torch
from torch import Tensor, nn

from .binding import ConvolutionBinding
from .convolution_moments import (
    PaddingRule,
    convolution_geometry,
    mean_patch,
    variance_slope,
)
from .errors import BindingError, HandoverError, OptionError
from .functional import (
    BatchStatistics,
    GradientForm,
    PooledStatistics,
    VarianceForm,
    WindowEstimates,
    batch_statistics,
    normalize,
    pool,
    pooled_normalizer,
    statistics_dtype,
    trust,
)
from .optimizer_steps import OptimizerStepCounter
from .substitute import SubstituteBatchNorm2d, describe
from .window import Iteration, RingWindow


class CrossIterationBatchNorm2d(SubstituteBatchNorm2d):
    """Batch normalization with the statistics of the last `window_size` forward passes.

    Yao et al., *Cross-Iteration Batch Normalization*, arXiv 2002.05712, eqs. 5 to 11: the
    statistics of past iterations are moved to today's weights by a first-order Taylor step in the
    weight of the layer's own convolution, then pooled with today's. Deviations from the paper:

    - The default gradient is "full", not the paper's: with k*M in the place of M the gradient
      is nearly that of frozen statistics and training at batch 2 fails where batch normalization
      trains. "full" is batch normalization's gradient with gamma * sigma_B / sigma for gamma, which
      is Batch Renormalization's (arXiv 1702.03275).
    - The default variance step is "centred": the paper's less a second-order term of the wrong
      sign.
    - One mean input patch and one slope of the variance are kept for an iteration in place of
      three tensors of the weight's shape; the mean's step is exact. No derivative runs in
      the forward pass: the slope is one weight-gradient convolution.
    - The convolution's bias shifts the mean exactly, so it takes no part in the Taylor step, and
      with `rho` = 0 it is today's as well.
    - Iterations weigh by their number of positions.
    - An iteration that today's own statistics contradict is left out of the pool, channel by
      channel, down to batch normalization (`functional.trust`). Infinite `d_max` and `r_max` give
      the paper's pool.

    The layer must be bound to its convolution (`convert_batchnorm` does it, or `bind`). It then
    expects the convolution's output as it is. In eval mode it is nn.BatchNorm2d, and the running
    statistics are the ones nn.BatchNorm2d would hold, which are those of single batches. A single
    value a channel (batch 1 and a 1x1 map), where nn.BatchNorm2d raises, is
    normalized by the window; having no variance of its own, it moves `running_var` towards the
    window's, once the window holds more than one value. The "full" gradient in the activations is
    zero there, as batch normalization's would be.

    Args:
        num_features: Channels C.
        eps: Added to the variance.
        momentum: Moving-average rate of the running statistics; None for a cumulative average.
        affine: Whether to learn weight and bias.
        track_running_stats: As nn.BatchNorm2d; without, eval mode uses the batch's statistics.
        window_size: Forward passes pooled, today included; 1 is batch normalization.
        burn_in_steps: Optimizer steps during which only today's statistics are used, while the
            window fills; see `OptimizerStepCounter`.
        rho: Length of the Taylor step; 0 is naive pooling.
        variance: Form of the variance's Taylor step.
        gradient: Form of the gradient.
        d_max: An iteration is left out where its mean is further than this many of today's
            deviations from today's mean.
        r_max: And where its deviation differs from today's by more than this factor.

    Attributes:
        window: The remembered iterations, None until bound; in the state_dict under "window.".

    Raises:
        OptionError: An option is out of range.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        window_size: int = 8,
        burn_in_steps: int = 0,
        rho: float = 1.0,
        variance: VarianceForm = "centred",
        gradient: GradientForm = "full",
        d_max: float = 1.0,
        r_max: float = 2.0,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats)
        _check_options(window_size, burn_in_steps, rho, variance, gradient)
        _check_trust(d_max, r_max)
        self.window_size = window_size
        self.burn_in_steps = burn_in_steps
        self.rho = rho
        self.variance = variance
        self.gradient = gradient
        self.d_max = d_max
        self.r_max = r_max
        self.window: RingWindow | None = None
        self.optimizer_steps = OptimizerStepCounter() if burn_in_steps else None
        self._binding: ConvolutionBinding | None = None

    def bind(
        self, convolution: nn.Conv2d, *, padding_rule: PaddingRule = "declared", label: str = ""
    ) -> Self:
        """Bind the layer to the convolution whose output it normalizes and empty its window.

        Args:
            convolution: The convolution; it gets a forward hook and is not registered here.
            padding_rule: "same" for a Conv2d subclass that pads for itself as TensorFlow does.
            label: Name of the layer for error messages.

        Returns:
            The layer itself.

        Raises:
            BindingError: It is no Conv2d or has another number of output channels.
        """
        if not isinstance(convolution, nn.Conv2d):
            raise BindingError(f"needs an nn.Conv2d to bind to, got {type(convolution).__name__}")
        if convolution.out_channels != self.num_features:
            raise BindingError(
                f"the convolution has {convolution.out_channels} output channels "
                f"and the layer {self.num_features}"
            )
        self.unbind()
        if self.window_size > 1:
            weight = convolution.weight
            label = label or type(self).__name__
            self._binding = ConvolutionBinding(convolution, self, padding_rule, label)
            self.window = RingWindow(self.window_size - 1, weight, convolution.groups)
        return self

    def unbind(self) -> None:
        """Let go of the convolution, its hook and the window."""
        if self._binding is not None:
            self._binding.release()
        self._binding = None
        self.window = None

    def _normalize_batch(self, y: Tensor) -> Tensor:
        device_type = y.device.type
        # Autocast would run the inner products of the statistics in 16 bits.
        with torch.no_grad(), torch.autocast(device_type, enabled=False):
            today = batch_statistics(y)
            if self.window_size == 1:
                pooled = self._pool_today_alone(today)
            else:
                pooled = self._pool_window(y, today)
            self._update_running(today.mean, self._unbiased_variance(today, pooled))
            normalizer = pooled_normalizer(today, pooled, eps=self.eps, gradient=self.gradient)
        return normalize(y, self.weight, self.bias, normalizer)

    def _pool_today_alone(self, today: BatchStatistics) -> PooledStatistics:
        if today.positions == 1:
            raise ValueError(
                "Expected more than 1 value per channel when training with a window of 1"
            )
        return PooledStatistics(today.mean, today.variance, torch.ones_like(today.mean))

    def _pool_window(self, y: Tensor, today: BatchStatistics) -> PooledStatistics:
        """Pool today with the window, then take today into the window."""
        binding, window = self._binding, self.window
        if binding is None or window is None:
            raise HandoverError(
                "CrossIterationBatchNorm2d is not bound to a convolution; use convert_batchnorm or "
                "bind(convolution), or window_size=1 for batch normalization"
            )
        if binding.norm is not self:
            raise HandoverError(
                f"{binding.label}: this is a shallow copy of the bound layer, as nn.DataParallel "
                "makes them; use DistributedDataParallel"
            )
        x = binding.take(y)
        convolution = binding.convolution
        past = window.estimates(
            convolution.weight, convolution.bias, rho=self.rho, form=self.variance
        )
        pooled = pool(today, self._trusted(past, convolution, today))
        iteration = _observe(convolution, x, y, today, binding.padding_rule)
        window.record(iteration, convolution.weight)
        return pooled

    def _trusted(
        self, past: WindowEstimates, convolution: nn.Conv2d, today: BatchStatistics
    ) -> WindowEstimates:
        """Leave out what today must not be pooled with, in the type of today's statistics."""
        weights = past.weights
        if self.optimizer_steps is not None:
            steps = self.optimizer_steps.observe(
                (convolution.weight, convolution.bias, self.weight, self.bias)
            )
            weights = weights * (steps >= self.burn_in_steps)
        dtype = today.mean.dtype
        past = WindowEstimates(past.means.to(dtype), past.variances.to(dtype), weights.to(dtype))
        return trust(today, past, d_max=self.d_max, r_max=self.r_max, eps=self.eps)

    def _unbiased_variance(self, today: BatchStatistics, pooled: PooledStatistics) -> Tensor | None:
        """Return the variance nn.BatchNorm2d would average, or the window's where M is 1."""
        if today.positions > 1:
            return today.variance * (today.positions / (today.positions - 1))
        if self.running_var is None:
            return None
        # The share of a single value is one over the window's positions. While the value is alone
        # (a share of 1) nothing is known of the variance, and the running one stays as it is.
        window_variance = pooled.variance / (1 - pooled.share)
        return window_variance.where(pooled.share < 1, self.running_var.to(window_variance.dtype))

    def extra_repr(self) -> str:
        """Show the options beside those of nn.BatchNorm2d."""
        return (
            f"{describe(self)}, window_size={self.window_size}, "
            f"burn_in_steps={self.burn_in_steps}, rho={self.rho}, variance={self.variance!r}, "
            f"gradient={self.gradient!r}, d_max={self.d_max}, r_max={self.r_max}"
        )


def _observe(
    convolution: nn.Conv2d, x: Tensor, y: Tensor, today: BatchStatistics, rule: PaddingRule
) -> Iteration:
    """Return what the window needs to know of this iteration."""
    dtype = statistics_dtype(y.dtype)
    geometry = convolution_geometry(convolution, x, (y.shape[2], y.shape[3]), rule)
    x = x.to(dtype)
    mean = today.mean
    if convolution.bias is not None:
        mean = mean - convolution.bias.detach().to(dtype)
    centred = y.detach().to(dtype) - today.mean.view(1, -1, 1, 1)
    return Iteration(
        mean,
        today.variance,
        today.positions,
        mean_patch(x, geometry),
        variance_slope(x, centred, convolution.weight.shape, geometry),
    )


def _check_trust(d_max: float, r_max: float) -> None:
    if not d_max >= 0:
        raise OptionError(f"d_max must not be negative, got {d_max}")
    if not r_max >= 1:
        raise OptionError(f"r_max must be at least 1, got {r_max}")


def _check_options(
    window_size: int, burn_in_steps: int, rho: float, variance: str, gradient: str
) -> None:
    if window_size < 1:
        raise OptionError(f"window_size must be at least 1, got {window_size}")
    if burn_in_steps < 0:
        raise OptionError(f"burn_in_steps must not be negative, got {burn_in_steps}")
    if not 0 <= rho <= 1:
        raise OptionError(f"rho must lie between 0 and 1, got {rho}")
    for name, value, form in (
        ("variance", variance, VarianceForm),
        ("gradient", gradient, GradientForm),
    ):
        if value not in get_args(form):
            raise OptionError(f"{name} must be one of {get_args(form)}, got {value!r}")
