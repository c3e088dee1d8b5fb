"""One optimizer step over several micro-batches, and one that fails on its way."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from models import SegmentationLoss
from models.loss_spec import Boundary, Focal
from norm import convert_batchnorm
from training.batches import Batch
from training.errors import ConfigError, DivergedError
from training.optimizer_step import Learner, Seen, take_step

SIDE_PX = 12
# Far more than the gradient of any test, so that clipping changes nothing.
UNCLIPPED = 1e9


def batch(seed: int, frames: int = 1, padded_rows: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(frames, 1, SIDE_PX, SIDE_PX, generator=generator, dtype=torch.float64)
    targets = torch.rand(frames, 2, SIDE_PX, SIDE_PX, generator=generator) < 0.2
    valid = torch.ones(frames, 1, SIDE_PX, SIDE_PX, dtype=torch.bool)
    valid[:, :, SIDE_PX - padded_rows :] = False
    return Batch(images, (targets & valid).to(torch.uint8), valid)


def network(kind: str = "gn", dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(dropout), nn.Conv2d(4, 2, 1)
    ).double()
    example = torch.zeros(2, 1, SIDE_PX, SIDE_PX, dtype=torch.float64)
    model, _ = convert_batchnorm(plain, example, kind=kind)  # type: ignore[arg-type]
    return model


def learner(model: nn.Module, loss: nn.Module | None = None) -> Learner:
    loss = loss or SegmentationLoss(torch.tensor([0.1, 0.2]))
    return Learner(model, loss, torch.device("cpu"), torch.float32)


def step(model: nn.Module, batches: list[Batch], loss: nn.Module | None = None) -> float:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return take_step(
        learner(model, loss), batches, optimizer, max_gradient_norm=UNCLIPPED, step=1
    ).loss


def gradients(model: nn.Module) -> list[Tensor]:
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


class CrossEntropy(nn.Module):
    """The part of the loss that is a mean over pixels."""

    def forward(self, logits: Tensor, targets: Tensor, valid: Tensor) -> Tensor:
        each = nn.functional.binary_cross_entropy_with_logits(
            logits, targets.to(logits.dtype), reduction="none"
        )
        return (each * valid).sum() / (valid.sum() * logits.shape[1])


def test_the_gradient_is_that_of_the_mean_loss_weighted_by_pixels_that_are_not_padding() -> None:
    batches = [batch(1), batch(2, frames=2, padded_rows=5), batch(3)]
    accumulated, whole = network(), network()
    value = step(accumulated, batches)

    loss = SegmentationLoss(torch.tensor([0.1, 0.2]))
    weights = [12 * 12, 2 * 7 * 12, 12 * 12]
    losses = [loss(whole(b.images), b.targets, b.valid) for b in batches]
    mean = sum(w * part for w, part in zip(weights, losses, strict=True)) / sum(weights)
    mean.backward()
    assert value == pytest.approx(mean.item(), rel=1e-6)
    for found, expected in zip(gradients(accumulated), gradients(whole), strict=True):
        # The loss is float32 whatever the network is.
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8)


def test_a_mean_over_pixels_does_not_depend_on_how_the_step_is_cut_into_micro_batches() -> None:
    parts = [batch(1), batch(2, padded_rows=5), batch(3), batch(4)]
    together = Batch(
        torch.cat([part.images for part in parts]),
        torch.cat([part.targets for part in parts]),
        torch.cat([part.valid for part in parts]),
    )
    one_by_one, at_once = network(), network()
    assert step(one_by_one, parts, CrossEntropy()) == pytest.approx(
        step(at_once, [together], CrossEntropy()), rel=1e-6
    )
    for found, expected in zip(gradients(one_by_one), gradients(at_once), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_the_gradient_of_the_whole_step_is_clipped_and_not_that_of_each_micro_batch() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    result = take_step(
        learner(model), [batch(1), batch(2)], optimizer, max_gradient_norm=1e-3, step=1
    )
    norms = torch.stack([gradient.norm() for gradient in gradients(model)])
    assert result.gradient_norm > 1e-2
    assert norms.norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_a_step_counts_what_it_saw() -> None:
    model = network()
    good = Batch(batch(1).images, torch.zeros(1, 2, 12, 12, dtype=torch.uint8), batch(1).valid)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    result = take_step(
        learner(model),
        [good, batch(2, frames=2, padded_rows=5)],
        optimizer,
        max_gradient_norm=1.0,
        step=1,
    )
    assert result.seen == Seen(
        frames=3, defective_frames=2, pixels=3 * 144, valid_pixels=144 + 2 * 84
    )


class RunsOut(nn.Module):
    """The loss on a device whose memory ends at one of its calls."""

    def __init__(self, at_call: int) -> None:
        super().__init__()
        self.inner = CrossEntropy()
        self.calls_left = at_call

    def forward(self, logits: Tensor, targets: Tensor, valid: Tensor) -> Tensor:
        self.calls_left -= 1
        if self.calls_left == 0:
            raise torch.OutOfMemoryError("no memory left")
        loss: Tensor = self.inner(logits, targets, valid)
        return loss


def test_a_step_that_ran_out_of_memory_leaves_no_trace_and_can_be_tried_again() -> None:
    model = network("cbn", dropout=0.5)
    twin = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters())
    batches = [batch(1), batch(2), batch(3)]
    for trained in (model, twin):
        torch.manual_seed(7)
        step(trained, [batch(9)])  # Windows and running statistics hold something.
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rng = torch.get_rng_state()
    with pytest.raises(torch.OutOfMemoryError):
        take_step(
            learner(model, RunsOut(at_call=3)),
            batches,
            optimizer,
            max_gradient_norm=1.0,
            step=2,
            undoable=True,
        )
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert torch.equal(torch.get_rng_state(), rng)
    assert not gradients(model)
    assert not optimizer.state

    step(model, batches)
    torch.set_rng_state(rng)
    step(twin, batches)
    for name, tensor in twin.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


def test_a_loss_that_is_no_number_in_one_micro_batch_moves_no_weight() -> None:
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    broken = batch(2)
    broken.images[0, 0, 0, 0] = torch.inf
    with pytest.raises(DivergedError) as caught:
        step(model, [batch(1), broken, batch(3)])
    assert caught.value.code == "loss_not_finite"
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_accumulated_focal_loss_is_that_of_one_batch() -> None:
    rates = torch.tensor([0.1, 0.2])
    spec = Focal(kind="focal", dice_weight=0.0)
    batches = [batch(1), batch(2, frames=2, padded_rows=5), batch(3)]
    # Frozen statistics, so that a frame's logits don't depend on its batch.
    models = [network(kind="frozen") for _ in range(2)]
    accumulated = step(models[0], batches, SegmentationLoss(rates, spec))
    together = Batch(
        images=torch.cat([b.images for b in batches]),
        targets=torch.cat([b.targets for b in batches]),
        valid=torch.cat([b.valid for b in batches]),
    )
    # Float32 sums in another order.
    assert accumulated == pytest.approx(
        step(models[1], [together], SegmentationLoss(rates, spec)), rel=1e-5
    )


def test_distance_maps_reach_a_loss_that_asks_for_them() -> None:
    loss = SegmentationLoss(torch.tensor([0.1, 0.2]), Boundary(kind="boundary"))
    loss.set_progress(1.0)
    near, far = batch(1), batch(1)
    near = replace(near, distances=torch.zeros(near.targets.shape))
    far = replace(far, distances=torch.ones(far.targets.shape))
    assert step(network(), [far], loss) > step(network(), [near], loss)


@pytest.mark.parametrize("kind", ["bn", "brn"])
def test_one_value_a_channel_is_refused_with_the_remedy_and_moves_no_weight(kind: str) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, stride=SIDE_PX), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)
    ).double()
    example = torch.zeros(2, 1, SIDE_PX, SIDE_PX, dtype=torch.float64)
    model, _ = convert_batchnorm(plain, example, kind=kind)  # type: ignore[arg-type]
    before = [weight.detach().clone() for weight in model.parameters()]
    with pytest.raises(ConfigError, match="a batch of 1 with 144 pixels") as told:
        step(model, [batch(1)])
    assert "norm.kind cbn or gn" in str(told.value.hint)
    for weight, known in zip(model.parameters(), before, strict=True):
        assert torch.equal(weight, known)
