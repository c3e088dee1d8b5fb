"""One optimizer step: batches in, weights moved once."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from training.batches import Batch
from training.errors import diverged
from training.memory.checkpointing import checkpointed
from training.preparation import Prepared


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step came to.

    Attributes:
        loss: Before the step.
        gradient_norm: Before it was clipped.
    """

    loss: float
    gradient_norm: float


def batch_loss(prepared: Prepared, batch: Batch) -> Tensor:
    """Run the network on one batch and return its loss, a scalar with a gradient.

    Whatever else a network is to learn, its loss is computed here.
    """
    images = batch.images.to(prepared.device, memory_format=torch.channels_last)
    autocast = torch.autocast(
        prepared.device.type,
        dtype=torch.bfloat16,
        enabled=prepared.precision == torch.bfloat16,
    )
    with autocast, checkpointed(prepared.network, prepared.recomputed):
        logits = prepared.network(images)
    targets, valid = batch.targets.to(prepared.device), batch.valid.to(prepared.device)
    loss: Tensor = prepared.loss(logits, targets, valid)
    return loss


def take_step(
    prepared: Prepared,
    batch: Batch,
    optimizer: torch.optim.Optimizer,
    *,
    max_gradient_norm: float,
    step: int,
) -> StepResult:
    """Move the weights once.

    Args:
        prepared: The network, its loss, device and precision.
        batch: What the step is to learn from.
        optimizer: With the step's learning rate set.
        max_gradient_norm: The gradient is clipped to it.
        step: The step's number from 1, for an error to name.

    Raises:
        DivergedError: The loss or the gradient is no number; the weights did not move.
    """
    loss = batch_loss(prepared, batch)
    value = float(loss.detach())
    if not math.isfinite(value):
        raise diverged("loss", f"at step {step}")
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    gradient_norm = float(
        nn.utils.clip_grad_norm_(prepared.network.parameters(), max_gradient_norm)
    )
    if not math.isfinite(gradient_norm):
        raise diverged("gradient", f"at step {step}")
    optimizer.step()
    return StepResult(value, gradient_norm)
