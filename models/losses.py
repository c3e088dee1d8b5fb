"""A loss that survives one foreground pixel in a thousand.

Shapes: N frames, K classes, H rows, W columns.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Above this a handful of mislabelled pixels would outweigh the rest of the frame.
MAX_POSITIVE_WEIGHT = 30.0


def positive_weights(foreground_rate: Tensor) -> Tensor:
    """Return the weight (K,) of a labelled pixel: the square root of the imbalance, bounded.

    The full ratio would make both classes weigh the same and drown the frame in false alarms; its
    square root is the usual compromise.
    """
    return foreground_rate.clamp_min(1e-8).rsqrt().clamp(1.0, MAX_POSITIVE_WEIGHT)


def soft_dice_loss(probabilities: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Return one minus the soft Dice of the classes present in the batch (Milletari et al., V-Net).

    Arxiv 1606.04797, eq. for D, with the squares in the denominator.  It deviates in pooling over
    the batch and in leaving out classes without a labelled pixel, whose Dice is undefined; a batch
    without any labelled pixel gives 0.

    Args:
        probabilities: (N, K, H, W) float32.
        target: (N, K, H, W) float32, 0 or 1.
        valid: (N, 1, H, W) float32, 0 where the batch was padded.
    """
    probabilities = probabilities * valid
    axes = (0, 2, 3)
    overlap = (probabilities * target).sum(axes)
    total = probabilities.square().sum(axes) + target.sum(axes)
    present = target.sum(axes) > 0
    dice = 2 * overlap / total.clamp_min(1e-6)
    return torch.where(present, 1 - dice, 0.0).sum() / present.sum().clamp_min(1)


class SegmentationLoss(nn.Module):
    """Weighted cross-entropy plus soft Dice, both in float32 and blind to padding.

    Args:
        foreground_rate: (K,) share of labelled pixels of each class in the training frames.
    """

    positive_weight: Tensor

    def __init__(self, foreground_rate: Tensor) -> None:
        super().__init__()
        self.register_buffer("positive_weight", positive_weights(foreground_rate))

    def forward(self, logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        """Return the loss of logits (N, K, H, W) for target (N, K, H, W) and valid (N, 1, H, W)."""
        logits = logits.float()
        target = target.float()
        valid = valid.float()
        cross_entropy = F.binary_cross_entropy_with_logits(
            logits,
            target,
            weight=valid,
            pos_weight=self.positive_weight.view(1, -1, 1, 1),
            reduction="sum",
        ) / (valid.sum() * logits.shape[1]).clamp_min(1)
        return cross_entropy + soft_dice_loss(logits.sigmoid(), target, valid)
