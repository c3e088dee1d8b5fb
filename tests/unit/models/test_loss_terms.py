"""Each loss is its equation, computed slowly in float64; none is moved by padding or extremes."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from models import LossSpec, SegmentationLoss
from models.distance_maps import signed_distances

KINDS: dict[str, dict[str, Any]] = {
    "cross_entropy_dice": {},
    "focal": {"alpha": 0.3, "gamma": 1.5, "dice_weight": 0.5},
    "focal_tversky": {"alpha": 0.6, "beta": 0.4, "gamma": 1.5},
    "boundary": {"weight": 0.4, "ramp": 0.5, "reach_px": 4.0},
    "hard_negatives": {"ratio": 2.0, "least": 7, "dice_weight": 0.5},
}
RATES = (0.05, 0.002)
REACH_PX = 4.0
Array = NDArray[np.float64]


def loss_of(kind: str) -> SegmentationLoss:
    spec: LossSpec = TypeAdapter[LossSpec](LossSpec).validate_python({"kind": kind, **KINDS[kind]})
    loss = SegmentationLoss(torch.tensor(RATES), spec)
    # A quarter of the run is half of the ramp.
    loss.set_progress(0.25)
    return loss


def example(*, empty: bool = False) -> tuple[torch.Tensor, ...]:
    """Two frames, two classes, the second frame padded; logits, target, valid, distances."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, 2, 9, 12, generator=generator) - 1
    target = (torch.rand(2, 2, 9, 12, generator=generator) < 0.15).float()
    valid = torch.ones(2, 1, 9, 12)
    valid[1, :, 7:] = 0
    valid[1, :, :, 10:] = 0
    target = target * valid * (0 if empty else 1)
    maps = [signed_distances(frame.permute(1, 2, 0).numpy(), REACH_PX) for frame in target]
    return logits, target, valid, torch.from_numpy(np.stack(maps))


def value(loss: SegmentationLoss, parts: tuple[torch.Tensor, ...]) -> torch.Tensor:
    answer = loss(*(parts if loss.reach_px else parts[:3]))
    assert isinstance(answer, torch.Tensor)
    return answer


# The oracle: one pixel at a time, in float64, from the equations.


def pixels_of(frame: int, valid: Array) -> list[tuple[int, int]]:
    rows, columns = valid.shape[-2:]
    return [(y, x) for y in range(rows) for x in range(columns) if valid[frame, 0, y, x]]


def oracle_dice(p: Array, g: Array, valid: Array) -> float:
    losses = []
    for k in range(p.shape[1]):
        at = [(n, k, y, x) for n in range(len(p)) for y, x in pixels_of(n, valid)]
        if any(g[i] for i in at):
            overlap = sum(p[i] * g[i] for i in at)
            losses.append(1 - 2 * overlap / (sum(p[i] ** 2 for i in at) + sum(g[i] for i in at)))
    return float(sum(losses) / len(losses)) if losses else 0.0


def oracle_cross_entropy(p: Array, g: Array, valid: Array) -> float:
    total, count = 0.0, 0
    for n in range(len(p)):
        for y, x in pixels_of(n, valid):
            for k, rate in enumerate(RATES):
                weight = min(max(1 / math.sqrt(rate), 1), 30)
                right = p[n, k, y, x] if g[n, k, y, x] else 1 - p[n, k, y, x]
                total -= (weight if g[n, k, y, x] else 1) * math.log(right)
                count += 1
    return total / count


def oracle_focal(p: Array, g: Array, valid: Array) -> float:
    alpha, gamma = KINDS["focal"]["alpha"], KINDS["focal"]["gamma"]
    by_class = []
    for k, rate in enumerate(RATES):
        total = 0.0
        for n in range(len(p)):
            for y, x in pixels_of(n, valid):
                right = p[n, k, y, x] if g[n, k, y, x] else 1 - p[n, k, y, x]
                share = alpha if g[n, k, y, x] else 1 - alpha
                total -= share * (1 - right) ** gamma * math.log(right)
        by_class.append(total / max(rate * float(valid.sum()), 1))
    return sum(by_class) / len(by_class)


def oracle_tversky(p: Array, g: Array, valid: Array) -> float:
    section = KINDS["focal_tversky"]
    losses = []
    for k in range(p.shape[1]):
        at = [(n, k, y, x) for n in range(len(p)) for y, x in pixels_of(n, valid)]
        found = sum(p[i] * g[i] for i in at)
        missed = sum((1 - p[i]) * g[i] for i in at)
        false = sum(p[i] * (1 - g[i]) for i in at)
        if any(g[i] for i in at):
            index = found / (found + section["alpha"] * missed + section["beta"] * false)
            losses.append((1 - index) ** (1 / section["gamma"]))
    return float(sum(losses) / len(losses)) if losses else 0.0


def oracle_distance(mask: Array, y: int, x: int) -> float:
    """Signed distance of one pixel in (H, W), by looking at every other pixel."""
    own = mask[y, x] > 0
    others = np.argwhere((mask > 0) != own)
    if len(others) == 0:
        return -REACH_PX if own else REACH_PX
    nearest = min(math.hypot(y - row, x - column) for row, column in others)
    signed = 1 - nearest if own else nearest
    return min(max(signed, -REACH_PX), REACH_PX)


def oracle_boundary(p: Array, g: Array, valid: Array) -> float:
    by_class = []
    for k, rate in enumerate(RATES):
        total = sum(
            p[n, k, y, x] * oracle_distance(g[n, k], y, x) / REACH_PX
            for n in range(len(p))
            for y, x in pixels_of(n, valid)
        )
        by_class.append(total / max(rate * float(valid.sum()), 1))
    return float(sum(by_class) / len(by_class))


def oracle_hard(p: Array, g: Array, valid: Array) -> float:
    section = KINDS["hard_negatives"]
    kept: list[float] = []
    for n in range(len(p)):
        for k in range(p.shape[1]):
            at = [(n, k, y, x) for y, x in pixels_of(n, valid)]
            positive = [-math.log(p[i]) for i in at if g[i]]
            negative = sorted((-math.log(1 - p[i]) for i in at if not g[i]), reverse=True)
            count = max(round(section["ratio"] * len(positive)), section["least"])
            kept += positive + negative[:count]
    return sum(kept) / len(kept)


def oracle(kind: str, parts: tuple[torch.Tensor, ...]) -> float:
    section = KINDS[kind]
    logits, g, valid = (part.double().numpy() for part in parts[:3])
    p = 1 / (1 + np.exp(-logits))
    dice = oracle_dice(p, g, valid)
    if kind == "focal":
        return oracle_focal(p, g, valid) + float(section["dice_weight"]) * dice
    if kind == "hard_negatives":
        return oracle_hard(p, g, valid) + float(section["dice_weight"]) * dice
    cross_entropy = oracle_cross_entropy(p, g, valid)
    if kind == "focal_tversky":
        return cross_entropy + oracle_tversky(p, g, valid)
    if kind == "boundary":
        return cross_entropy + dice + 0.5 * float(section["weight"]) * oracle_boundary(p, g, valid)
    return cross_entropy + dice


@pytest.mark.parametrize("empty", [False, True], ids=["labelled", "empty"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_loss_is_its_equation(kind: str, empty: bool) -> None:
    parts = example(empty=empty)
    # Float32 sums of some hundred terms, and distances of eleven bits.
    rtol = 1e-3 if kind == "boundary" else 1e-5
    assert float(value(loss_of(kind), parts)) == pytest.approx(oracle(kind, parts), rel=rtol)


@pytest.mark.parametrize("kind", KINDS)
def test_no_loss_hears_what_is_said_about_padding(kind: str) -> None:
    logits, target, valid, distances = example()
    loud = torch.where(valid > 0, logits, 1e4)
    loss = loss_of(kind)
    assert torch.equal(
        value(loss, (logits, target, valid, distances)),
        value(loss, (loud, target, valid, distances)),
    )


@pytest.mark.parametrize("empty", [False, True], ids=["labelled", "empty"])
@pytest.mark.parametrize("size", [0.0, 1e4, -1e4])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_stay_finite_at_extreme_logits(kind: str, size: float, empty: bool) -> None:
    _, target, valid, distances = example(empty=empty)
    for sign in (torch.ones_like(target), 2 * target - 1):
        logits = (size * sign).requires_grad_()
        loss = value(loss_of(kind), (logits, target, valid, distances))
        (gradient,) = torch.autograd.grad(loss, logits)
        assert bool(loss.isfinite())
        assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("kind", KINDS)
def test_frames_without_a_defect_teach_that_they_have_none(kind: str) -> None:
    _, target, valid, distances = example(empty=True)
    logits = torch.zeros_like(target, requires_grad=True)
    loss = value(loss_of(kind), (logits, target, valid, distances))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert float(gradient.min()) >= 0
    assert float(gradient.max()) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_under_autocast_a_loss_is_the_same_float32(kind: str) -> None:
    logits, *rest = example()
    halves = logits.bfloat16()
    loss = loss_of(kind)
    expected = value(loss, (halves.float(), *rest))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = value(loss, (halves, *rest))
    assert under.dtype == torch.float32
    assert torch.equal(under, expected)


def test_focal_loss_without_focus_is_half_the_cross_entropy_at_even_weights() -> None:
    logits, target, valid, _ = example()
    spec = TypeAdapter[LossSpec](LossSpec).validate_python(
        {"kind": "focal", "alpha": 0.5, "gamma": 0.0, "dice_weight": 0.0}
    )
    # At a rate of one the expected labelled pixels are all pixels.
    focal = SegmentationLoss(torch.ones(2), spec)(logits, target, valid)
    weight = valid.expand_as(target).double()
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(
        logits.double(), target.double(), weight=weight, reduction="sum"
    )
    assert float(focal) == pytest.approx(float(entropy / weight.sum()) / 2, rel=1e-5)


def test_the_boundary_loss_grows_in_over_its_ramp() -> None:
    loss = loss_of("boundary")
    weights = []
    for share in (0.0, 0.25, 0.5, 1.0):
        loss.set_progress(share)
        weights.append(loss.boundary_weight)
    assert weights == pytest.approx([0.0, 0.2, 0.4, 0.4])


def test_an_outline_is_at_zero_and_a_frame_of_one_kind_is_far_from_any() -> None:
    mask = np.zeros((9, 9, 3), np.uint8)
    mask[3:6, 3:6, 0] = 1
    mask[:, :, 2] = 1
    maps = REACH_PX * signed_distances(mask, REACH_PX)
    assert maps[0, 3, 3] == 0
    assert maps[0, 4, 4] == -1
    assert maps[0, 4, 7] == 2
    assert (maps[1] == REACH_PX).all()
    assert (maps[2] == -REACH_PX).all()


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "lovasz"},
        {"kind": "focal", "gamma": -1},
        {"kind": "focal", "ratio": 3},
        {"kind": "boundary", "ramp": 0},
        {"kind": "hard_negatives", "least": 0},
    ],
)
def test_a_loss_that_does_not_exist_is_refused_before_anything_runs(fields: Any) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(LossSpec).validate_python(fields)
