"""The terms that losses are made of, each a function of float32 tensors and blind to padding.

Shapes: N frames, K classes, H rows, W columns.  ``valid`` is (N, 1, H, W), 1 or, where the batch
was padded, 0; everything else is (N, K, H, W).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# Above this a handful of mislabelled pixels would outweigh the rest of the frame.
MAX_POSITIVE_WEIGHT = 30.0
# A class that the measured frames don't show is expected this rarely, as in a network's last bias.
LEAST_RATE = 1e-4
# Below this a power of less than one has a slope that would drown every other gradient.
LEAST_COMPLEMENT = 1e-6


def positive_weights(foreground_rate: Tensor) -> Tensor:
    """Return the weight (K,) of a labelled pixel: the square root of the imbalance, bounded.

    The full ratio would make both classes weigh the same and drown the frame in false alarms; its
    square root is the usual compromise.
    """
    return foreground_rate.clamp_min(1e-8).rsqrt().clamp(1.0, MAX_POSITIVE_WEIGHT)


def weighted_cross_entropy(
    logits: Tensor, target: Tensor, valid: Tensor, positive_weight: Tensor
) -> Tensor:
    """Return the mean cross-entropy of pixels and classes, labelled ones weighted by (K,)."""
    return F.binary_cross_entropy_with_logits(
        logits,
        target,
        weight=valid,
        pos_weight=positive_weight.view(1, -1, 1, 1),
        reduction="sum",
    ) / (valid.sum() * logits.shape[1]).clamp_min(1)


def soft_dice_loss(probabilities: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Return one minus the soft Dice of the classes present in the batch (Milletari et al., V-Net).

    Arxiv 1606.04797, eq. for D, with the squares in the denominator.  It deviates in pooling over
    the batch and in leaving out classes without a labelled pixel, whose Dice is undefined; a batch
    without any labelled pixel gives 0.
    """
    probabilities = probabilities * valid
    axes = (0, 2, 3)
    overlap = (probabilities * target).sum(axes)
    total = probabilities.square().sum(axes) + target.sum(axes)
    present = target.sum(axes) > 0
    dice = 2 * overlap / total.clamp_min(1e-6)
    return torch.where(present, 1 - dice, 0.0).sum() / present.sum().clamp_min(1)


def focal_loss(
    logits: Tensor,
    target: Tensor,
    valid: Tensor,
    foreground_rate: Tensor,
    *,
    alpha: float,
    gamma: float,
) -> Tensor:
    """Return the focal loss (Lin et al., arXiv 1708.02002, eq. 5), a mean over the classes.

    FL(p_t) = -alpha_t (1 - p_t)^gamma log(p_t), summed over the valid pixels.  The paper divides by
    the number of objects in the batch.  It deviates in dividing by the labelled pixels to be
    expected among the valid ones, ``foreground_rate`` (K,) of them: a frame without a defect has
    none to divide by, and batches that are accumulated then add up to one large batch.
    """
    signed = torch.where(target > 0.5, logits, -logits)
    # (1 - p_t)^gamma by its logarithm: a power of a rounded zero has no finite slope below one.
    modulation = torch.exp(gamma * F.logsigmoid(-signed))
    alpha_t = torch.where(target > 0.5, alpha, 1 - alpha)
    pixels = -alpha_t * modulation * F.logsigmoid(signed) * valid
    return (pixels.sum((0, 2, 3)) / _expected(foreground_rate, valid)).mean()


def focal_tversky_loss(
    probabilities: Tensor,
    target: Tensor,
    valid: Tensor,
    *,
    alpha: float,
    beta: float,
    gamma: float,
) -> Tensor:
    """Return the focal Tversky loss (Abraham and Khan, arXiv 1810.07842, eq. 2 and 3).

    TI = sum p g / (sum p g + alpha sum (1 - p) g + beta sum p (1 - g)); the loss of a class is
    (1 - TI)^(1 / gamma).  It deviates as `soft_dice_loss` does (pooled over the batch, absent
    classes left out, a mean and not a sum over classes), and in a bound on 1 - TI, below which the
    gradient is 0 instead of growing without limit.
    """
    probabilities = probabilities * valid
    axes = (0, 2, 3)
    overlap = (probabilities * target).sum(axes)
    labelled = target.sum(axes)
    missed = labelled - overlap
    false = probabilities.sum(axes) - overlap
    index = overlap / (overlap + alpha * missed + beta * false).clamp_min(LEAST_COMPLEMENT)
    loss = (1 - index).clamp_min(LEAST_COMPLEMENT).pow(1 / gamma)
    present = labelled > 0
    return torch.where(present, loss, 0.0).sum() / present.sum().clamp_min(1)


def boundary_loss(
    probabilities: Tensor, distances: Tensor, valid: Tensor, foreground_rate: Tensor
) -> Tensor:
    """Return the boundary loss (Kervadec et al., arXiv 1812.07032, eq. 5), a mean over the classes.

    The sum of s(q) phi(q) over the pixels q, where phi is the signed distance of
    `models.distance_maps.signed_distances`, negative inside of a defect.  The paper averages over
    the image; it deviates in dividing by the expected labelled pixels as `focal_loss` does, so that
    one weight suits defects of any size.
    """
    sums = (probabilities * distances * valid).sum((0, 2, 3))
    return (sums / _expected(foreground_rate, valid)).mean()


def hard_negative_cross_entropy(
    logits: Tensor, target: Tensor, valid: Tensor, *, ratio: float, least: int
) -> Tensor:
    """Return the mean cross-entropy of labelled pixels and of the hardest unlabelled ones.

    Online hard example mining (Shrivastava et al., arXiv 1604.03540) at a stated ratio (Liu et al.,
    SSD, arXiv 1512.02325, sec. 2.2): in each frame and class the ``ratio * labelled``, at least
    ``least``, unlabelled pixels of highest loss count, the others don't.
    """
    pixels = F.binary_cross_entropy_with_logits(logits, target, reduction="none") * valid
    labelled = target * valid
    negative = (pixels * (1 - target)).flatten(2)
    counts = labelled.sum((2, 3))
    available = valid.sum((2, 3)) - counts
    kept = torch.minimum((ratio * counts).round().clamp_min(least), available)
    # Ranks and not a top-k, whose length would have to be read back from the device.
    ranks = torch.arange(negative.shape[2], device=negative.device)
    hardest = negative.sort(dim=2, descending=True).values * (ranks < kept[:, :, None])
    return ((pixels * labelled).sum() + hardest.sum()) / (counts.sum() + kept.sum()).clamp_min(1)


def _expected(foreground_rate: Tensor, valid: Tensor) -> Tensor:
    return (foreground_rate.clamp_min(LEAST_RATE) * valid.sum()).clamp_min(1)
