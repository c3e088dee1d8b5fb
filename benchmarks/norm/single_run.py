"""One run: build, convert, train, judge."""

import functools
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import norm
from benchmarks.norm.average_precision import ScoreHistogram
from benchmarks.norm.network import build_network
from benchmarks.norm.protocol import (
    METHODS,
    SETS,
    WEIGHT_DECAY,
    Run,
    conversion_options,
    rate_factor,
)
from benchmarks.norm.splits import Images, common_crop, load_set

# Defects cover a percent or so of the images; a weight near the inverse would drown the rest.
POSITIVE_WEIGHT = 4.0
DICE_SMOOTHING_PX = 1.0
STATISTICS_PATCHES = 128
STATISTICS_FRAMES = 4
EVALUATION_PATCHES = 64
# These keep no running statistics, or keep the ones they were trained under on purpose.
NOT_RECALIBRATED = ("gn", "frozen")


# The sets of one process's runs follow one another, and frames are large.
_loaded = functools.lru_cache(maxsize=1)(load_set)


def perform(run: Run, datasets: Path, device: str) -> dict[str, Any]:
    """Train and judge one network; the outcome is what the results file holds.

    Side effects: sets torch's random state and, on CUDA, forbids TF32 convolutions.
    """
    splits = _loaded(run.cell.set_name, datasets)
    torch.backends.cudnn.allow_tf32 = False
    started_s, started_cpu_s = time.perf_counter(), time.process_time()
    spec = SETS[run.cell.set_name]
    network: nn.Module = build_network(spec.channels, patches=spec.patches, seed=run.seed)
    network = convert(network.to(device), run, splits["train"])
    losses = train(network, run, splits["train"])
    trained_s = time.perf_counter() - started_s
    outcome: dict[str, Any] = {
        "train_s": round(trained_s, 2),
        "last_loss": _mean(losses[-max(1, len(losses) // 10) :]),
    }
    outcome |= judge(network, run, splits, finished=math.isfinite(losses[-1]))
    return outcome | {
        "seconds": round(time.perf_counter() - started_s, 2),
        # Beside other work, wall time says little; this process's own does.
        "cpu_seconds": round(time.process_time() - started_cpu_s, 2),
    }


def convert(network: nn.Module, run: Run, images: Images) -> nn.Module:
    """Put the run's normalization into the network, all of it.

    Frozen statistics are first set from the training images at the initial weights.

    Raises:
        RuntimeError: A batch normalization was left as it was.
    """
    method = METHODS[run.cell.method]
    if method.kind == "frozen":
        _recalibrate(network, images)
    device = next(network.parameters()).device
    example = torch.zeros(1, SETS[run.cell.set_name].channels, 64, 64, device=device)
    options = conversion_options(method, run.cell.optimizer_steps)
    network, report = norm.convert_batchnorm(network, example, kind=method.kind, **options)
    if report.left:
        raise RuntimeError(f"{run.cell.method}: these were not converted: {report.left}")
    return network


def train(network: nn.Module, run: Run, images: Images) -> list[float]:
    """Train for the run's images and return the loss of each batch; stop at a loss not finite."""
    optimizer = _optimizer(network, run.learning_rate)
    steps = run.cell.optimizer_steps
    parts = run.cell.images_per_step // run.cell.batch
    network.train()
    losses: list[float] = []
    batches = training_batches(images, run)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = run.learning_rate * rate_factor(step, steps)
        optimizer.zero_grad(set_to_none=True)
        for _ in range(parts):
            x, masks = next(batches)
            loss = loss_of(network(_normalized(x, network)), masks.to(x.device))
            (loss / parts).backward()  # type: ignore[no-untyped-call]
            losses.append(float(loss.detach()))
            if not math.isfinite(losses[-1]):
                return losses
        optimizer.step()
    return losses


def _optimizer(network: nn.Module, rate: float) -> torch.optim.AdamW:
    """Return AdamW that decays filters but neither biases nor norms' parameters."""
    parameters = list(network.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=rate)


def training_batches(images: Images, run: Run) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield uint8 batches; order and flips depend on the seed alone, not on method or batch."""
    count = SETS[run.cell.set_name].images
    generator = torch.Generator().manual_seed(run.seed)
    order: list[int] = []
    while len(order) < count:
        order += torch.randperm(len(images.pixels), generator=generator).tolist()
    draws = torch.rand(count, 3, generator=generator).tolist()
    batch = run.cell.batch
    for start in range(0, count, batch):
        chosen = order[start : min(start + batch, count)]
        pixels, masks = [], []
        for index, (across, down, _) in zip(chosen, draws[start:], strict=False):
            axes = [axis for axis, draw in ((-1, across), (-2, down)) if draw < 0.5]
            pixels.append(images.pixels[index].flip(axes))
            masks.append(images.masks[index].flip(axes))
        crops = [draw for _, _, draw in draws[start : start + len(chosen)]]
        yield common_crop(pixels, masks, crops)


def loss_of(logits: Tensor, masks: Tensor) -> Tensor:
    """Return weighted cross-entropy plus soft Dice, each image's own and then averaged.

    Dice over a whole batch would make the loss depend on the batch size.

    Args:
        logits: (N, H, W).
        masks: uint8, (N, H, W).
    """
    targets = masks.to(logits)
    entropy = F.binary_cross_entropy_with_logits(
        logits, targets, pos_weight=logits.new_tensor(POSITIVE_WEIGHT)
    )
    probabilities = logits.sigmoid()
    overlap = (probabilities * targets).sum((1, 2))
    total = probabilities.sum((1, 2)) + targets.sum((1, 2))
    dice = (2 * overlap + DICE_SMOOTHING_PX) / (total + DICE_SMOOTHING_PX)
    return entropy + 1 - dice.mean()


def judge(
    network: nn.Module, run: Run, splits: dict[str, Images], *, finished: bool
) -> dict[str, Any]:
    """Return the scores under the running statistics as they are and, if it can be, recalibrated.

    A diverged network scores 0.
    """
    scores = {
        f"{name}_ap": score(network, splits[name]) if finished else None for name in ("val", "test")
    }
    diverged = None in scores.values()
    outcome: dict[str, Any] = {
        **{name: value or 0.0 for name, value in scores.items()},
        "diverged": diverged,
        "test_ap_recalibrated": None,
    }
    if METHODS[run.cell.method].kind in NOT_RECALIBRATED:
        return outcome
    if diverged:
        return outcome | {"test_ap_recalibrated": 0.0}
    try:
        converged = _recalibrate(network, splits["train"])
    except norm.NormError as error:
        # Weights may be finite and their statistics not: that is a way to diverge as well.
        return outcome | {"test_ap_recalibrated": 0.0, "recalibration_error": str(error)}
    recalibrated = score(network, splits["test"]) or 0.0
    return outcome | {
        "test_ap_recalibrated": recalibrated,
        "recalibration_converged": converged,
    }


def _recalibrate(network: nn.Module, images: Images) -> bool:
    """Set the running statistics to those of some training images; say whether they settled."""
    batches = _evaluation_batches(images, STATISTICS_PATCHES, STATISTICS_FRAMES, batch=32)
    inputs = [_normalized(x, network) for x, _ in batches]
    return norm.recalibrate(network, inputs).converged


@torch.no_grad()
def score(network: nn.Module, images: Images) -> float | None:
    """Return the pixel average precision in eval mode, or None where an output is not finite."""
    network.eval()
    histogram = ScoreHistogram()
    for x, masks in _evaluation_batches(images, len(images.pixels), len(images.pixels)):
        probabilities = network(_normalized(x, network)).sigmoid().cpu()
        if not probabilities.isfinite().all():
            return None
        histogram.add(probabilities, masks)
    return histogram.average_precision()


def _evaluation_batches(
    images: Images, patches: int, frames: int, *, batch: int = EVALUATION_PATCHES
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield uint8 batches without flips: up to `patches` in batches, or `frames` one by one."""
    one_size = len({mask.shape for mask in images.masks}) == 1 and images.masks[0].numel() < 10_000
    size, count = (batch, patches) if one_size else (1, frames)
    # Patches near defects come first; every n-th image takes from both halves.
    chosen = range(0, len(images.pixels), max(1, len(images.pixels) // count))[:count]
    for start in range(0, len(chosen), size):
        indices = chosen[start : start + size]
        yield (
            torch.stack([images.pixels[index] for index in indices]),
            torch.stack([images.masks[index] for index in indices]),
        )


def _normalized(x: Tensor, network: nn.Module) -> Tensor:
    """Return uint8 pixels on the network's device, in about [-2, 2]."""
    device = next(network.parameters()).device
    return (x.to(device).float() / 255 - 0.5) * 4


def _mean(values: list[float]) -> float | None:
    mean = sum(values) / len(values)
    # JSON has no number for it.
    return round(mean, 6) if math.isfinite(mean) else None
