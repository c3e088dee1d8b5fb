"""Cross-iteration batch normalization (Yao et al., arXiv 2002.05712)."""

from typing import Self, get_args

import torch
from torch import Tensor, nn

from .binding import ConvolutionBinding
from .convolution_moments import PaddingRule
from .errors import BindingError, HandoverError, OptionError
from .factored_window import FactoredWindow, is_smaller_factored
from .functional import (
    BatchStatistics,
    GradientForm,
    Normalizer,
    PooledStatistics,
    VarianceForm,
    WindowEstimates,
    no_estimates,
    pool,
    pooled_normalizer,
    trust,
)
from .fused_window import PackedPass, normalize_packed, observe, takes_activations, takes_layer
from .observation import ForwardPass
from .optimizer_steps import OptimizerStepCounter
from .ranks import RankPolicy, gather_over_ranks
from .recomputation import recomputing
from .substitute import SubstituteBatchNorm2d, describe
from .window import ExponentialWindow, HistoryForm, RingWindow, Window


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
            deviations from today's mean. The default of this and of `r_max` was chosen on real
            defects at batch 1 and 2 (docs/decisions/0010).
        r_max: And where its deviation differs from today's by more than this factor.
        history: "ring" remembers the last iterations one by one. "exponential" keeps a moving
            average that forgets 1 / `window_size` of itself an iteration, in the memory of
            a single one (`window.ExponentialWindow`); it is not in the paper.
        slope_positions: Output positions that the variance's slope is computed from, at least, on a
            regular grid; None for all of them (`observation.sampled_slope`).
        slope_rank: Keep slopes as factors from this many positions where they are smaller
            (`factored_window`), in place of whole slopes from `slope_positions`; None for whole
            slopes everywhere. With few positions it is cheaper, above all on small maps.
        history_dtype: torch.bfloat16 to store the ring's slopes in half the memory; statistics stay
            as they are. None for the type of the statistics.
        ranks: With several processes, "separate" keeps each rank to its own batches; "pooled" pools
            today and the past of all of them (`ranks.gather_over_ranks`), and `running_mean`
            and `running_var` follow today's batches of all ranks as one. The gradient
            is through the rank's own batch in both.

    Attributes:
        window: What is remembered, None until bound; in the state_dict under "window.".

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
        d_max: float = 0.25,
        r_max: float = 1.25,
        history: HistoryForm = "ring",
        slope_positions: int | None = 1024,
        slope_rank: int | None = None,
        history_dtype: torch.dtype | None = None,
        ranks: RankPolicy = "separate",
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats)
        _check_numbers(window_size, burn_in_steps, rho)
        _check_slopes(slope_positions, slope_rank)
        _check_trust(d_max, r_max)
        _check_forms(variance=variance, gradient=gradient, history=history, ranks=ranks)
        _check_history(history, variance, history_dtype, slope_rank)
        self.window_size = window_size
        self.burn_in_steps = burn_in_steps
        self.rho = rho
        self.variance = variance
        self.gradient = gradient
        self.d_max = d_max
        self.r_max = r_max
        self.history = history
        self.slope_positions = slope_positions
        self.slope_rank = slope_rank
        self.history_dtype = history_dtype
        self.ranks = ranks
        self.window: Window | None = None
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
            self.window = self._empty_window(weight, convolution.groups)
        return self

    def _empty_window(self, weight: Tensor, groups: int) -> Window:
        if self.history == "exponential":
            return ExponentialWindow(
                self.window_size,
                weight,
                groups,
                rho=self.rho,
                slope_positions=self.slope_positions,
            )
        past = self.window_size - 1
        rank = self.slope_rank
        if rank is not None and is_smaller_factored(weight, groups, rank):
            return FactoredWindow(past, weight, groups, rank=rank, rho=self.rho, form=self.variance)
        return RingWindow(
            past,
            weight,
            groups,
            rho=self.rho,
            form=self.variance,
            slope_dtype=self.history_dtype,
            slope_positions=self.slope_positions,
        )

    def unbind(self) -> None:
        """Let go of the convolution, its hook and the window."""
        if self._binding is not None:
            self._binding.release()
        self._binding = None
        self.window = None

    def _normalize_batch(self, y: Tensor) -> Tensor:
        rows = self._observe_on_gpu(y)
        if rows is None:
            return super()._normalize_batch(y)
        packed = PackedPass(rows, y.numel() // y.shape[1], has_share=self.gradient == "paper")
        self._recent.remember(packed)
        return normalize_packed(y, self.weight, self.bias, packed)

    @torch.no_grad()
    def _observe_on_gpu(self, y: Tensor) -> Tensor | None:
        """Return what the fused kernels make of the batch, or None where the plain path has to."""
        binding, window = self._binding, self.window
        if (
            binding is None
            or window is None
            or binding.norm is not self
            or not takes_activations(y)
            or torch.compiler.is_compiling()
            or recomputing()
            or self.optimizer_steps is not None
            or self.ranks == "pooled"
            or not takes_layer(self, binding.convolution, window, y.device)
        ):
            return None
        assert isinstance(window, RingWindow)  # `takes_layer` asks for it.
        return observe(
            self,
            binding.convolution,
            binding.padding_rule,
            window,
            binding.take(y),
            y.detach(),
            d_max=self.d_max,
            r_max=self.r_max,
            gradient=self.gradient,
        )

    def _observe(self, y: Tensor, today: BatchStatistics) -> Normalizer:
        past = no_estimates(today) if self.window_size == 1 else self._consult_window(y, today)
        batch = today
        if self.ranks == "pooled":
            batch, past = gather_over_ranks(today, past)
        if batch.positions == 1 and self.window_size == 1:
            raise ValueError(
                "Expected more than 1 value per channel when training with a window of 1"
            )
        trusted = trust(batch, past, d_max=self.d_max, r_max=self.r_max, eps=self.eps)
        pooled = pool(batch, trusted)
        self._update_running(batch.mean, self._unbiased_variance(batch, pooled))
        if batch.positions != today.positions:
            pooled = pooled._replace(share=pooled.share * (today.positions / batch.positions))
        return pooled_normalizer(today, pooled, eps=self.eps, gradient=self.gradient)

    def _consult_window(self, y: Tensor, today: BatchStatistics) -> WindowEstimates:
        """Return what the window says of today's weights, then take today into it."""
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
        past = window.consult(ForwardPass(convolution, x, y, today, binding.padding_rule))
        weights = past.weights
        if self.optimizer_steps is not None:
            steps = self.optimizer_steps.observe(
                (convolution.weight, convolution.bias, self.weight, self.bias)
            )
            weights = weights * (steps >= self.burn_in_steps)
        dtype = today.mean.dtype
        return WindowEstimates(past.means.to(dtype), past.variances.to(dtype), weights.to(dtype))

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
            f"gradient={self.gradient!r}, d_max={self.d_max}, r_max={self.r_max}, "
            f"history={self.history!r}, slope_positions={self.slope_positions}, "
            f"slope_rank={self.slope_rank}, history_dtype={self.history_dtype}, "
            f"ranks={self.ranks!r}"
        )


def _check_trust(d_max: float, r_max: float) -> None:
    if not d_max >= 0:
        raise OptionError(f"d_max must not be negative, got {d_max}")
    if not r_max >= 1:
        raise OptionError(f"r_max must be at least 1, got {r_max}")


def _check_numbers(window_size: int, burn_in_steps: int, rho: float) -> None:
    if window_size < 1:
        raise OptionError(f"window_size must be at least 1, got {window_size}")
    if burn_in_steps < 0:
        raise OptionError(f"burn_in_steps must not be negative, got {burn_in_steps}")
    if not 0 <= rho <= 1:
        raise OptionError(f"rho must lie between 0 and 1, got {rho}")


def _check_slopes(slope_positions: int | None, slope_rank: int | None) -> None:
    if slope_positions is not None and slope_positions < 1:
        raise OptionError(f"slope_positions must be at least 1 or None, got {slope_positions}")
    if slope_rank is not None and slope_rank < 1:
        raise OptionError(f"slope_rank must be at least 1 or None, got {slope_rank}")


def _check_forms(*, variance: str, gradient: str, history: str, ranks: str) -> None:
    for name, value, form in (
        ("variance", variance, VarianceForm),
        ("gradient", gradient, GradientForm),
        ("history", history, HistoryForm),
        ("ranks", ranks, RankPolicy),
    ):
        if value not in get_args(form):
            raise OptionError(f"{name} must be one of {get_args(form)}, got {value!r}")


def _check_history(
    history: str, variance: str, history_dtype: torch.dtype | None, slope_rank: int | None
) -> None:
    if history_dtype not in (None, torch.bfloat16):
        # float16 ends at 65504, which the slope of one bright channel can pass.
        raise OptionError(f"history_dtype must be torch.bfloat16 or None, got {history_dtype}")
    if history == "exponential" and history_dtype is not None:
        raise OptionError(
            f"history_dtype {history_dtype} is for the ring: a moving average in eight bits stops "
            "moving"
        )
    if history == "exponential" and variance != "centred":
        raise OptionError(f"variance {variance!r} is for the ring: the average is kept centred")
    if history == "exponential" and slope_rank is not None:
        raise OptionError(
            f"slope_rank {slope_rank} is for the ring: a moving average has no few factors"
        )
    if history_dtype is not None and slope_rank is not None:
        raise OptionError(
            f"history_dtype {history_dtype} is for whole slopes: with a slope_rank they are smaller"
        )
