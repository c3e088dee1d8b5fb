"""How far a run is, and what a checkpoint holds of it."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from norm import plain_state_dict
from norm.optimizer_steps import fingerprint
from training.errors import CheckpointError, RanksDisagreeError
from training.ranks import Ranks
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


class Trained(NamedTuple):
    """What training moves on this rank.

    Attributes:
        network: With its windows, which are this rank's own.
        optimizer: The same on all ranks.
        average: On the first rank alone, and if one is asked for.
        device: This rank's.
    """

    network: nn.Module
    optimizer: torch.optim.Optimizer
    average: WeightAverage | None
    device: torch.device


def checkpoint_content(state: LoopState, trained: Trained, ranks: Ranks) -> dict[str, Any]:
    """Return everything that decides how the run goes on; empty on all ranks but the first.

    Windows and random state are each rank's own; all else is the same everywhere.  Tensors are
    shared, not copied.

    Raises:
        RanksDisagreeError: The ranks' weights are not the same.
    """
    own = ranks.gather(_own_content(trained, is_first=ranks.is_first))
    if not ranks.is_first:
        return {}
    if len({content["weights_fingerprint"] for content in own}) > 1:
        raise RanksDisagreeError(
            "ranks_disagree",
            f"the processes' weights differ after step {state.step}",
            hint="report it with the run's directory; devices 1 trains without other processes",
        )
    content: dict[str, Any] = {
        "network": trained.network.state_dict(),
        "optimizer": trained.optimizer.state_dict(),
        "state": dict(vars(state)),
        "ranks": own,
    }
    if trained.average is not None:
        content["ema"] = trained.average.state_dict()
    return content


def restore_checkpoint(content: dict[str, Any], trained: Trained, ranks: Ranks) -> LoopState:
    """Put this rank's network, optimizer, average and random state back; return the run's state.

    Raises:
        CheckpointError: It was written by another number of processes.
    """
    if len(content["ranks"]) != ranks.count:
        raise CheckpointError(
            "checkpoint_of_other_devices",
            f"the checkpoint is of {len(content['ranks'])} processes, devices is {ranks.count}",
            hint="put devices back to what the run was started with, or start a new run",
        )
    own = content["ranks"][ranks.rank]
    trained.network.load_state_dict(content["network"] | own["windows"])
    trained.optimizer.load_state_dict(content["optimizer"])
    torch.set_rng_state(own["rng"])
    if trained.device.type == "cuda":
        torch.cuda.set_rng_state(own["cuda_rng"], trained.device)
    if trained.average is not None:
        trained.average.load_state_dict(content["ema"])
    return LoopState(**content["state"])


def _own_content(trained: Trained, *, is_first: bool) -> dict[str, Any]:
    """Return what is this rank's own, on the CPU, and by what its weights can be compared.

    The first rank's windows are in its network already.
    """
    shared = plain_state_dict(trained.network)
    weights = list(trained.network.parameters())
    content: dict[str, Any] = {
        "windows": {
            name: tensor.cpu()
            for name, tensor in trained.network.state_dict().items()
            if name not in shared and not is_first
        },
        "rng": torch.get_rng_state(),
        "weights_fingerprint": int(fingerprint(weights)),
    }
    if trained.device.type == "cuda":
        content["cuda_rng"] = torch.cuda.get_rng_state(trained.device)
    return content
