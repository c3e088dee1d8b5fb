"""The loss at one foreground pixel in a thousand."""

import pytest
import torch

from models import SegmentationLoss
from models.loss_terms import MAX_POSITIVE_WEIGHT, positive_weights, soft_dice_loss


def frame(labelled_px: int) -> tuple[torch.Tensor, torch.Tensor]:
    target = torch.zeros(1, 1, 100, 100)
    target.view(-1)[:labelled_px] = 1
    return target, torch.ones(1, 1, 100, 100)


def test_missing_a_tiny_defect_costs_more_than_finding_it() -> None:
    target, valid = frame(labelled_px=10)
    loss = SegmentationLoss(torch.tensor([0.001]))
    nothing = torch.full_like(target, -8.0)
    found = torch.where(target > 0, 8.0, -8.0)
    everything = torch.full_like(target, 8.0)
    assert loss(found, target, valid) < 0.05
    assert loss(nothing, target, valid) > 20 * loss(found, target, valid)
    assert loss(everything, target, valid) > loss(nothing, target, valid)


def test_padding_has_no_say() -> None:
    target, valid = frame(labelled_px=10)
    valid[..., 50:, :] = 0
    loss = SegmentationLoss(torch.tensor([0.001]))
    logits = torch.randn(1, 1, 100, 100, generator=torch.Generator().manual_seed(0))
    other = logits.clone()
    other[..., 50:, :] = 50.0
    torch.testing.assert_close(
        loss(logits, target, valid), loss(other, target, valid), rtol=0, atol=0
    )


def test_a_batch_of_good_frames_gives_a_finite_gradient_towards_background() -> None:
    target, valid = frame(labelled_px=0)
    logits = torch.zeros(1, 1, 100, 100, requires_grad=True)
    SegmentationLoss(torch.tensor([0.001]))(logits, target, valid).backward()
    assert logits.grad is not None
    assert bool((logits.grad > 0).all())


def test_half_precision_logits_are_judged_in_float32() -> None:
    target, valid = frame(labelled_px=10)
    loss = SegmentationLoss(torch.tensor([0.001]))(
        torch.zeros(1, 1, 100, 100, dtype=torch.bfloat16), target, valid
    )
    assert loss.dtype == torch.float32


def test_dice_is_that_of_the_classes_present() -> None:
    target = torch.zeros(1, 2, 10, 10)
    target[0, 0, :5] = 1
    valid = torch.ones(1, 1, 10, 10)
    probabilities = torch.zeros(1, 2, 10, 10)
    probabilities[0, 0, :5, :5] = 1
    # 2 * 25 / (25 + 50), and the absent second class adds nothing.
    # The margin is float32 rounding.
    assert soft_dice_loss(probabilities, target, valid).item() == pytest.approx(1 / 3, rel=1e-6)


def test_weights_grow_with_rarity_and_stay_bounded() -> None:
    weights = positive_weights(torch.tensor([1.0, 0.01, 0.0]))
    torch.testing.assert_close(weights, torch.tensor([1.0, 10.0, MAX_POSITIVE_WEIGHT]))
