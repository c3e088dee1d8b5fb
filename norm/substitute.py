"""What every layer that takes the place of an nn.BatchNorm2d has in common."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .functional import BatchStatistics, Normalizer, batch_statistics, normalize
from .recomputation import RecentNormalizers, recomputing

# timm's BatchNormAct2d runs these two after normalizing, in this order.  They are recognised by
# name because this room needs torch alone.
FUSED_TAIL = ("drop", "act")


@dataclass(frozen=True)
class ReplacedLayer:
    """The layer a substitute stands for, kept out of the module tree and the state_dict."""

    module: nn.Module


def share_state(source: nn.Module, target: nn.Module) -> None:
    """Let `target` hold the very parameters and buffers of `source` that it has as well."""
    for name in ("weight", "bias"):
        target.register_parameter(name, getattr(source, name))
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        if hasattr(source, name) and hasattr(target, name):
            target.register_buffer(name, getattr(source, name))


def copy_fused_tail(source: nn.Module, target: nn.Module) -> None:
    """Give `target` the dropout and activation that `source` runs after normalizing, shared."""
    for name in FUSED_TAIL:
        part = getattr(source, name, None)
        if isinstance(part, nn.Module):
            target.add_module(name, part)


def run_fused_tail(layer: nn.Module, y: Tensor) -> Tensor:
    """Run the dropout and activation that `layer` has taken over, if any."""
    for name in FUSED_TAIL:
        part = getattr(layer, name, None)
        if isinstance(part, nn.Module):
            y = part(y)
    return y


def take_place(substitute: nn.Module, replaced: nn.Module) -> None:
    """Let `substitute` share the parameters, buffers, mode and fused tail of `replaced`.

    Only parameters and buffers that the substitute has as well are shared. Side effect:
    `substitute.replaced` remembers the layer.
    """
    share_state(replaced, substitute)
    copy_fused_tail(replaced, substitute)
    substitute.training = replaced.training
    substitute.replaced = ReplacedLayer(replaced)  # type: ignore[assignment]


def without_autocast(device_type: str) -> AbstractContextManager[None]:
    """Return a context without autocast, which would run inner products of statistics in 16 bits.

    Entering autocast to switch off what is off took as long as ten small operators.
    """
    if not torch.is_autocast_enabled(device_type):
        return nullcontext()
    return torch.autocast(device_type, enabled=False)


def describe(layer: nn.BatchNorm2d) -> str:
    """Return what nn.BatchNorm2d shows of itself in a model's printout."""
    text: str = nn.BatchNorm2d.extra_repr(layer)  # type: ignore[no-untyped-call]
    return text


class SubstituteBatchNorm2d(nn.BatchNorm2d):
    """A batch normalization that differs from nn.BatchNorm2d in training mode only.

    In eval mode it is nn.BatchNorm2d, so a trained model converts back, folds and exports as an
    ordinary one. In training mode it moves its statistics and normalizes with constants that a
    subclass chooses in `_observe`. A forward pass that activation checkpointing runs again is
    normalized with the constants of the first run and moves nothing.

    Attributes:
        replaced: The layer this one was converted from, or None.
    """

    replaced: ReplacedLayer | None = None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats)
        self._recent = RecentNormalizers()

    def forward(self, y: Tensor) -> Tensor:
        """Normalize `y` (N, C, H, W), then run a fused dropout and activation if there is one."""
        self._check_input_dim(y)
        normalized = self._normalize_batch(y) if self.training else super().forward(y)
        return run_fused_tail(self, normalized)

    def _normalize_batch(self, y: Tensor) -> Tensor:
        with torch.no_grad(), without_autocast(y.device.type):
            today = batch_statistics(y)
            if recomputing():
                normalizer = self._recent.find(today)
            else:
                normalizer = self._observe(y, today)
                if not torch.compiler.is_compiling():
                    self._recent.remember((today, normalizer))
        return normalize(y, self.weight, self.bias, normalizer)

    def _observe(self, y: Tensor, today: BatchStatistics) -> Normalizer:
        """Take the batch into the statistics and return what to normalize it with.

        Runs without gradients and without autocast, once for each training forward pass.
        """
        raise NotImplementedError

    def _update_running(self, mean: Tensor, unbiased_variance: Tensor | None) -> None:
        """Move the running statistics as nn.BatchNorm2d does; None leaves the variance alone."""
        if self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None  # It is there whenever the other two are.
        self.num_batches_tracked.add_(1)
        momentum = self.momentum
        if momentum is None:
            momentum = 1.0 / float(self.num_batches_tracked)
        for running, value in (
            (self.running_mean, mean),
            (self.running_var, unbiased_variance),
        ):
            if value is None:
                continue
            if running.dtype == value.dtype:
                running.lerp_(value, momentum)
            else:
                running.copy_(torch.lerp(running.to(value.dtype), value, momentum))


class FrozenBatchNorm2d(SubstituteBatchNorm2d):
    """Batch normalization with running statistics and affine parameters that never move.

    A comparator for small batches: the layer is the same affine map in training and eval mode. Its
    parameters get no gradient, so an optimizer leaves them alone.
    """

    def _normalize_batch(self, y: Tensor) -> Tensor:
        weight = None if self.weight is None else self.weight.detach()
        bias = None if self.bias is None else self.bias.detach()
        return nn.functional.batch_norm(
            y, self.running_mean, self.running_var, weight, bias, training=False, eps=self.eps
        )


class GroupNorm2d(nn.GroupNorm):
    """Group normalization (arXiv 1803.08494) in the place of a batch normalization.

    It has weight and bias under the same names and keeps a fused dropout and activation. It has no
    running statistics, so what it learns cannot be handed back to a batch normalization.
    """

    replaced: ReplacedLayer | None = None

    def forward(self, y: Tensor) -> Tensor:
        """Normalize `y` (N, C, H, W), then run a fused dropout and activation if there is one."""
        return run_fused_tail(self, super().forward(y))
