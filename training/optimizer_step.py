"""One optimizer step: micro-batches in, weights moved once, or nothing moved at all."""

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Self

import torch
from torch import Tensor, nn

from norm import RankStatistics
from training.batches import TaskBatch
from training.errors import ConfigError, diverged
from training.memory.checkpointing import checkpointed
from training.memory.shortage import is_out_of_memory
from training.ranks import Ranks

ALONE = Ranks()
# In the errors of torch's normalization layers and of ours.
_TOO_FEW_VALUES = "more than 1 value per channel"


@dataclass(frozen=True)
class Learner:
    """What is trained, and how it runs.

    Attributes:
        network: In training mode, on ``device``.
        loss: Called with the network's answer and what a batch holds of the truth.
        device: Where it runs.
        precision: torch.bfloat16 for autocast, torch.float32 for none.
        recomputed: Names of modules that are computed again in the backward pass.
    """

    network: nn.Module
    loss: nn.Module
    device: torch.device
    precision: torch.dtype
    recomputed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Seen:
    """What a step, or a part of it, looks at.

    Attributes:
        frames: Frames or windows.
        defective_frames: Those of them that show a labelled defect.
        pixels: With padding.
        valid_pixels: Without it.
    """

    frames: int = 0
    defective_frames: int = 0
    pixels: int = 0
    valid_pixels: int = 0

    @classmethod
    def of(cls, batch: TaskBatch) -> Self:
        """Count one batch."""
        return cls(
            frames=batch.frame_count,
            defective_frames=batch.defective_count,
            pixels=batch.pixel_count,
            valid_pixels=batch.valid_pixel_count,
        )

    def __add__(self, other: Self) -> Self:
        return type(self)(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step came to.

    Attributes:
        loss: The one whose gradient was followed, before the step.
        gradient_norm: Before it was clipped.
        seen: By the step.
    """

    loss: float
    gradient_norm: float
    seen: Seen


class ForwardEffects:
    """What forward passes in training mode change, copied so that it can be put back.

    That is running statistics, windows and step counters, which are all buffers, and random state.
    """

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        self._device = device
        self._buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
        self._rng = torch.get_rng_state()
        self._cuda_rng = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def undo(self) -> None:
        """Put everything back."""
        for buffer, before in self._buffers:
            buffer.copy_(before)
        torch.set_rng_state(self._rng)
        if self._cuda_rng is not None:
            torch.cuda.set_rng_state(self._cuda_rng, self._device)


def batch_loss(learner: Learner, batch: TaskBatch) -> Tensor:
    """Run the network on one batch and return its loss, a scalar with a gradient.

    Whatever else a network is to learn, its loss is computed here.

    Raises:
        ConfigError: A normalization layer is left with one value a channel, which has no variance.
    """
    autocast = torch.autocast(
        learner.device.type,
        dtype=torch.bfloat16,
        enabled=learner.precision == torch.bfloat16,
    )
    with autocast, checkpointed(learner.network, learner.recomputed):
        try:
            answer = learner.network(*batch.inputs(learner.device))
        except ValueError as error:
            if _TOO_FEW_VALUES not in str(error):
                raise
            raise _one_value(batch) from error
    loss: Tensor = learner.loss(answer, *batch.truth(learner.device))
    return loss


def _one_value(batch: TaskBatch) -> ConfigError:
    return ConfigError(
        "one_value_to_normalize",
        f"a batch of {batch.frame_count} with {batch.pixel_count} pixels in all leaves one value a "
        "channel to a normalization layer, which has no variance",
        hint="use norm.kind cbn or gn, larger frames (resolution), or a batch_size that leaves no "
        "single frame for an epoch's end",
    )


def take_step(
    learner: Learner,
    batches: Sequence[TaskBatch],
    optimizer: torch.optim.Optimizer,
    *,
    max_gradient_norm: float,
    step: int,
    undoable: bool = False,
    ranks: Ranks = ALONE,
) -> StepResult:
    """Move the weights once, by the gradient of the mean loss over all pixels of the step.

    With v_m the valid pixels of micro-batch m, the loss is sum_m (v_m / sum v) loss_m. Its
    cross-entropy is that of all the step's pixels in one batch; its soft Dice is the mean of the
    micro-batches' own, by pixels, which is not that of one batch.  A detector's losses are means
    over frames, and v_m counts its frames.

    What is raised before the optimizer moves leaves the weights, the optimizer and ``batches`` as
    they were. With ``undoable`` it also leaves buffers (running statistics, windows) and random
    state as they were and drops gradients, so that the same step may be tried again: with
    ``batches`` split into smaller ones, with ``learner`` of another precision, or with activation
    checkpointing. That costs one copy of the buffers, on their device.
    Once the optimizer moves there is no way back, but by then activations are freed.

    Args:
        learner: The network and how it runs.
        batches: The step's micro-batches, or this rank's part of them, which may be none; each is
            run alone.
        optimizer: With the step's learning rate set.
        max_gradient_norm: The step's gradient, not a micro-batch's, is clipped to it.
        step: The step's number from 1, for an error to name.
        undoable: Whether a failed step must leave no trace.
        ranks: The processes that share the step.  All of them take it with the same gradient, and
            afterwards hold the same running statistics (`norm.RankStatistics`); if it fails, it
            fails on all of them alike, unless forward passes go in lockstep.

    Raises:
        DivergedError: The loss or the gradient is no number.
        RuntimeError: A micro-batch does not fit the device, or that of another rank
            (`is_out_of_memory`).
    """
    effects = ForwardEffects(learner.network, learner.device) if undoable else None
    statistics = RankStatistics.of(learner.network) if ranks.count > 1 else None
    seen = sum((Seen.of(batch) for batch in batches), Seen())
    seen = Seen(*ranks.sum(astuple(seen)))
    optimizer.zero_grad(set_to_none=True)
    try:
        (weight,) = ranks.sum([sum(batch.weight for batch in batches)])
        loss = _accumulate_together(learner, batches, weight, ranks)
        _check_finite(loss, "loss", step)
        gradient_norm = float(
            nn.utils.clip_grad_norm_(learner.network.parameters(), max_gradient_norm)
        )
        _check_finite(gradient_norm, "gradient", step)
        if statistics is not None:
            statistics.merge()
    except Exception:
        if effects is not None:
            optimizer.zero_grad(set_to_none=True)
            effects.undo()
        raise
    optimizer.step()
    return StepResult(loss, gradient_norm, seen)


def _accumulate_together(
    learner: Learner, batches: Sequence[TaskBatch], weight: float, ranks: Ranks
) -> float:
    """Leave the gradient of the step's loss with the parameters, on all ranks; return the loss."""
    failure: RuntimeError | None = None
    loss = 0.0
    try:
        loss = _accumulate(learner, batches, weight)
    except RuntimeError as error:
        # In lockstep the others wait in a forward pass of theirs, and there is no telling them.
        if ranks.lockstep or not is_out_of_memory(error):
            raise
        failure = error
    if ranks.any(failure is not None):
        raise failure or torch.OutOfMemoryError("the device of another rank ran out of memory")
    ranks.sum_gradients(learner.network.parameters())
    (loss,) = ranks.sum([loss])
    return loss


def _accumulate(learner: Learner, batches: Sequence[TaskBatch], weight: float) -> float:
    """Add the gradient of the step's loss to the parameters' and return the loss."""
    total = torch.zeros((), dtype=torch.float64, device=learner.device)
    for batch in batches:
        loss = batch_loss(learner, batch) * (batch.weight / weight)
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.detach()
    return float(total)


def _check_finite(value: float, what: str, step: int) -> None:
    # Every rank has the same sums, so all of them come to the same conclusion.
    if not math.isfinite(value):
        raise diverged(what, f"at step {step}")
