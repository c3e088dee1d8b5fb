"""Losses that survive one foreground pixel in a thousand; ``docs/losses.md`` compares them.

Shapes: N frames, K classes, H rows, W columns.
"""

import torch
from torch import Tensor, nn

from models.loss_spec import (
    Boundary,
    CrossEntropyDice,
    Focal,
    FocalTversky,
    HardNegatives,
    LossSpec,
)
from models.loss_terms import (
    boundary_loss,
    focal_loss,
    focal_tversky_loss,
    hard_negative_cross_entropy,
    positive_weights,
    soft_dice_loss,
    weighted_cross_entropy,
)


class SegmentationLoss(nn.Module):
    """The loss of a specification, in float32 and blind to padding.

    Args:
        foreground_rate: (K,) share of labelled pixels of each class in the training frames.
        spec: Which loss.
    """

    positive_weight: Tensor
    foreground_rate: Tensor

    def __init__(self, foreground_rate: Tensor, spec: LossSpec | None = None) -> None:
        super().__init__()
        self.spec: LossSpec = spec or CrossEntropyDice()
        self._progress = 0.0
        self.register_buffer("positive_weight", positive_weights(foreground_rate))
        self.register_buffer("foreground_rate", foreground_rate.float())

    def set_progress(self, share: float) -> None:
        """Say which share of the run's steps is taken; scheduled weights follow it."""
        self._progress = share

    @property
    def reach_px(self) -> float | None:
        """The reach of the distance maps that `forward` needs, None if it needs none."""
        return self.spec.reach_px if isinstance(self.spec, Boundary) else None

    @property
    def boundary_weight(self) -> float:
        """The boundary loss's weight at the present progress; 0 for losses without one."""
        if not isinstance(self.spec, Boundary):
            return 0.0
        return self.spec.weight * min(self._progress / self.spec.ramp, 1.0)

    def forward(
        self, logits: Tensor, target: Tensor, valid: Tensor, distances: Tensor | None = None
    ) -> Tensor:
        """Return the loss, a scalar.

        Args:
            logits: (N, K, H, W).
            target: (N, K, H, W), 0 or 1.
            valid: (N, 1, H, W), 0 where the batch was padded.
            distances: (N, K, H, W), see `models.distance_maps`; for a loss with a `reach_px`.
        """
        # Autocast would round the sums over millions of pixels.
        with torch.autocast(logits.device.type, enabled=False):
            loss = self._of(logits.float(), target.float(), valid.float())
            if isinstance(self.spec, Boundary):
                assert distances is not None  # `reach_px` has asked for them.
                term = boundary_loss(
                    logits.float().sigmoid(),
                    distances.float(),
                    valid.float(),
                    self.foreground_rate,
                )
                loss = loss + self.boundary_weight * term
        return loss

    def _of(self, logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        """Return all but the boundary term."""
        spec, probabilities = self.spec, logits.sigmoid()
        if isinstance(spec, Focal):
            focal = focal_loss(
                logits,
                target,
                valid,
                self.foreground_rate,
                alpha=spec.alpha,
                gamma=spec.gamma,
            )
            return focal + spec.dice_weight * soft_dice_loss(probabilities, target, valid)
        if isinstance(spec, HardNegatives):
            hard = hard_negative_cross_entropy(
                logits, target, valid, ratio=spec.ratio, least=spec.least
            )
            return hard + spec.dice_weight * soft_dice_loss(probabilities, target, valid)
        cross_entropy = weighted_cross_entropy(logits, target, valid, self.positive_weight)
        if isinstance(spec, FocalTversky):
            return cross_entropy + focal_tversky_loss(
                probabilities,
                target,
                valid,
                alpha=spec.alpha,
                beta=spec.beta,
                gamma=spec.gamma,
            )
        return cross_entropy + soft_dice_loss(probabilities, target, valid)
