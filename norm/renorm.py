"""Batch Renormalization (Ioffe, arXiv 1702.03275)."""

from typing import NamedTuple

from torch import Tensor

from .errors import OptionError
from .functional import BatchStatistics, Normalizer, renormalizer
from .optimizer_steps import OptimizerStepCounter
from .substitute import SubstituteBatchNorm2d, describe

# The paper's section 4 steps of 5,000, 25,000 and 40,000, as parts of a job of 160,000 steps.
DEFAULT_TOTAL_STEPS = 160_000
CORRECTION_STARTS = 1 / 32
MEAN_CORRECTION_FULL = 5 / 32
DEVIATION_CORRECTION_FULL = 1 / 4


class CorrectionLimits(NamedTuple):
    """Bounds of the correction, scalar tensors: 1 / r_max <= r <= r_max and |d| <= d_max."""

    r_max: Tensor
    d_max: Tensor


def correction_limits(
    steps: Tensor, *, total_steps: int, r_max: float, d_max: float
) -> CorrectionLimits:
    """Return the bounds after `steps` optimizer steps (arXiv 1702.03275, section 4).

    Plain batch normalization (1 and 0) for the first 1/32 of the job, then linearly to `d_max` at
    5/32 and `r_max` at 1/4. Deviation from the paper: its 5,000, 25,000 and 40,000 steps scale
    with the length of the job and are reached at `total_steps` = 160,000.

    Args:
        steps: Optimizer steps taken, an integer scalar tensor.
        total_steps: Optimizer steps of the whole job.
        r_max: Final bound of r.
        d_max: Final bound of d.
    """
    progress = steps / total_steps
    r_part = (progress - CORRECTION_STARTS) / (DEVIATION_CORRECTION_FULL - CORRECTION_STARTS)
    d_part = (progress - CORRECTION_STARTS) / (MEAN_CORRECTION_FULL - CORRECTION_STARTS)
    return CorrectionLimits(1 + (r_max - 1) * r_part.clamp(0, 1), d_max * d_part.clamp(0, 1))


class BatchRenorm2d(SubstituteBatchNorm2d):
    """Batch normalization corrected towards the running statistics.

    Ioffe, *Batch Renormalization*, arXiv 1702.03275, algorithm 1. Deviations: the running
    variance, not the running deviation, is averaged, so that eval mode and the state_dict are
    nn.BatchNorm2d's; eps is inside every root; the schedule scales with the job's length. Steps are
    counted as changes of weight and bias (`OptimizerStepCounter`), and as forward passes where the
    layer trains neither.

    Args:
        num_features: Channels C.
        eps: Added to every variance.
        momentum: Moving-average rate; the paper's 0.01 by default, because the average is what the
            layer normalizes with. None for a cumulative average.
        affine: Whether to learn weight and bias.
        track_running_stats: Must be True.
        total_steps: Optimizer steps of the whole job; see `correction_limits`.
        r_max: Final bound of the deviation's correction.
        d_max: Final bound of the mean's correction, in deviations.

    Attributes:
        optimizer_steps: The counter, in the state_dict under "optimizer_steps.".

    Raises:
        OptionError: An option is out of range.
    """

    optimizer_steps: OptimizerStepCounter

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.01,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        total_steps: int = DEFAULT_TOTAL_STEPS,
        r_max: float = 3.0,
        d_max: float = 5.0,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats)
        if not track_running_stats:
            raise OptionError(
                "BatchRenorm2d corrects towards running statistics and must track them"
            )
        if total_steps < 1:
            raise OptionError(f"total_steps must be at least 1, got {total_steps}")
        if r_max < 1:
            raise OptionError(f"r_max must be at least 1, got {r_max}")
        if d_max < 0:
            raise OptionError(f"d_max must not be negative, got {d_max}")
        self.total_steps = total_steps
        self.r_max = r_max
        self.d_max = d_max
        self.optimizer_steps = OptimizerStepCounter()

    def _observe(self, y: Tensor, today: BatchStatistics) -> Normalizer:
        if today.positions == 1:
            # As in nn.BatchNorm2d: one value has no variance, and its gradient would be zero.
            raise ValueError(
                f"Expected more than 1 value per channel when training, got {tuple(y.shape)}"
            )
        # They are there: the constructor refuses to go without.
        assert self.running_mean is not None
        assert self.running_var is not None
        steps = self.optimizer_steps.observe((self.weight, self.bias))
        limits = correction_limits(
            steps, total_steps=self.total_steps, r_max=self.r_max, d_max=self.d_max
        )
        dtype = today.mean.dtype
        normalizer = renormalizer(
            today,
            self.running_mean.to(dtype),
            self.running_var.to(dtype),
            eps=self.eps,
            r_max=limits.r_max.to(dtype),
            d_max=limits.d_max.to(dtype),
        )
        unbiased = today.variance * (today.positions / (today.positions - 1))
        self._update_running(today.mean, unbiased)
        return normalizer

    def extra_repr(self) -> str:
        """Show the options beside those of nn.BatchNorm2d."""
        return (
            f"{describe(self)}, total_steps={self.total_steps}, "
            f"r_max={self.r_max}, d_max={self.d_max}"
        )
