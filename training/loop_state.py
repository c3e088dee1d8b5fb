"""How far a run is, and what a checkpoint holds of it."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from training.weight_average import WeightAverage


@dataclass
class LoopState:
    """How far the run is; everything of it is in a checkpoint."""

    step: int = 0
    elapsed_s: float = 0.0
    best_dice: float = -1.0
    best_epoch: int = 0
    # Weights and running statistics alone: the window's history is no part of the model.
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    # Epochs whose end was dealt with, so that a run killed just there deals with it when resumed.
    closed_epochs: int = 0
    padded_pixels: int = 0
    seen_pixels: int = 0
    # Rewinds after a loss or gradient that was no number; each halves the learning rate.
    rewinds: int = 0
    # Frames or windows, and those of them that showed a labelled defect.
    seen_frames: int = 0
    seen_defective: int = 0
    # Of the optimizer steps since the last look at the calibration frames.
    loss_sum: float = 0.0
    loss_steps: int = 0
    # Why training ended; empty while it goes on.
    ended_by: str = ""


def checkpoint_content(
    state: LoopState,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
    average: WeightAverage | None,
) -> dict[str, Any]:
    """Return everything that decides how the run goes on; tensors are shared, not copied."""
    content: dict[str, Any] = {
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "state": dict(vars(state)),
        "rng": torch.get_rng_state(),
    }
    if device.type == "cuda":
        content["cuda_rng"] = torch.cuda.get_rng_state(device)
    if average is not None:
        content["ema"] = average.state_dict()
    return content


def restore_checkpoint(
    content: dict[str, Any],
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
    average: WeightAverage | None,
) -> LoopState:
    """Put network, optimizer, average and random state back to a checkpoint's; return its state."""
    network.load_state_dict(content["network"])
    optimizer.load_state_dict(content["optimizer"])
    torch.set_rng_state(content["rng"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(content["cuda_rng"], device)
    if average is not None:
        average.load_state_dict(content["ema"])
    return LoopState(**content["state"])
