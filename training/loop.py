"""The training loop: batches in, a network with better weights out, resumable at any step."""

import contextlib
import copy
import math
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from data import Draw
from data.loader import batches_ahead, default_workers, prefetch
from models import Pixels, Preprocessing, frame_probabilities
from norm import restore_batchnorm
from training.batches import Batch, collate, count_steps, largest_batch_bytes, plan_draws
from training.checkpoint import (
    discard_checkpoints_after,
    load_latest_checkpoint,
    save_checkpoint,
)
from training.config import RunConfig
from training.errors import DivergedError
from training.evaluation import score_histograms, whole_frames
from training.events import EventLog
from training.preparation import Prepared
from training.progress import Progress
from training.run_directory import RunDirectory

# Calibration frames are looked at about this often in a run, since on a CPU a look at whole frames
# costs as much as many steps.
LOOKS_A_RUN = 12
# Rates eight times lower than asked for would train a network that nobody asked for.
MOST_REWINDS = 3


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
    # Why training ended; empty while it goes on.
    ended_by: str = ""


class EvalForward:
    """The training-side network in eval mode, asked one whole frame at a time."""

    def __init__(self, network: nn.Module, preprocessing: Preprocessing, device: torch.device):
        self._network = network
        self._preprocessing = preprocessing
        self._device = device

    def probabilities(self, pixels: Pixels) -> NDArray[np.float32]:
        """Return (K, H, W) float32; the network's mode is restored.

        Raises:
            DivergedError: A probability is no number.
        """
        was_training = self._network.training
        self._network.eval()
        try:
            answer = frame_probabilities(self._network, pixels, self._preprocessing, self._device)[
                0
            ]
        finally:
            self._network.train(was_training)
        if not np.isfinite(answer).all():
            raise diverged("probabilities", "in eval mode")
        return answer


class TrainingLoop:
    """Trains the prepared network until a limit, early stopping or a cancel request ends it.

    Side effects: writes events and checkpoints into the run's directory, and changes the network.
    """

    def __init__(
        self, config: RunConfig, prepared: Prepared, run: RunDirectory, events: EventLog
    ) -> None:
        self.config = config
        self.prepared = prepared
        self.run = run
        self.events = events
        self.state = LoopState()
        items = prepared.train.items
        self.steps_per_epoch, self.steps_total = count_steps(items, config)
        self._workers = default_workers() if config.data.workers is None else config.data.workers
        batch_bytes = largest_batch_bytes(items, config, len(prepared.manifest.classes))
        self._ahead = batches_ahead(self._workers, batch_bytes)
        epochs_total = math.ceil(self.steps_total / self.steps_per_epoch)
        self.look_every_epochs = max(1, math.ceil(epochs_total / LOOKS_A_RUN))
        self.optimizer = _build_optimizer(prepared.network, config)
        self._plain_names = plain_state_names(prepared.network)
        self._checkpointed_s = self._ticked_s = time.monotonic()

    def resume(self, checkpoint: dict[str, Any]) -> None:
        """Go on from a checkpoint that this run wrote."""
        self.prepared.network.load_state_dict(checkpoint["network"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.state = LoopState(**checkpoint["state"])
        torch.set_rng_state(checkpoint["rng"])
        if self.prepared.device.type == "cuda":
            torch.cuda.set_rng_state(checkpoint["cuda_rng"], self.prepared.device)

    def train(self, progress: Progress) -> bool:
        """Train to the end; return False if a cancel request ended it.

        Raises:
            DivergedError: The loss or the gradient is no number, after `MOST_REWINDS` rewinds too.
        """
        self.prepared.network.train()
        if self.state.step == 0:
            self._save(self.run.rewind_points)
        while not self.state.ended_by:
            try:
                if self.epoch > self.state.closed_epochs or self._at_limit():
                    self._close_epoch()
                elif not self._train_rest_of_epoch(progress):
                    self._checkpoint()
                    return False
            except DivergedError as error:
                self._rewind(error)
                progress.rewound()
        self._checkpoint()
        return True

    def _train_rest_of_epoch(self, progress: Progress) -> bool:
        """Train to the epoch's end or a limit; return False if a cancel request came first."""
        with contextlib.closing(self._rest_of_epoch()) as batches:
            for batch in batches:
                if self.run.cancel_requested:
                    return False
                self._step(batch, progress)
                if self._at_limit():
                    break
        return True

    def _rewind(self, error: DivergedError) -> None:
        """Go back to where all was well, with half the learning rate; give up after some times.

        That is the last look at the calibration frames, not the last checkpoint: weights that are
        about to overflow are numbers still. The network's running statistics and windows go back
        as well, since a forward pass that overflowed is in them.
        """
        elapsed_s = self.state.elapsed_s
        checkpoint, _ = load_latest_checkpoint(self.run.rewind_points)
        if checkpoint is None:
            raise error
        # A run that was killed while it rewound may not know of it.
        rewinds = max(self.state.rewinds, checkpoint["state"]["rewinds"]) + 1
        if rewinds > MOST_REWINDS:
            raise error
        self.resume(checkpoint)
        self.state.rewinds = rewinds
        # Time that was spent is spent, also under a limit on it.
        self.state.elapsed_s = elapsed_s
        self.events.warning(
            error.code,
            f"{error.detail}; back to step {self.state.step}, and on with the learning rate "
            f"divided by {2**rewinds}",
        )
        # A run that is killed now resumes with the lower rate.
        self._save(self.run.rewind_points)
        discard_checkpoints_after(self.run.checkpoints, self.state.step)
        self._save(self.run.checkpoints)

    def load_best(self) -> None:
        """Give the network the weights of its best look at the calibration frames.

        Its history stays as it is; the network must only be used in eval mode afterwards.
        """
        current = self.prepared.network.state_dict()
        self.prepared.network.load_state_dict(current | self.state.best_weights)

    @property
    def epoch(self) -> int:
        """Whole passes over the training frames so far."""
        return self.state.step // self.steps_per_epoch

    def _rest_of_epoch(self) -> Generator[Batch]:
        epoch = self.epoch
        done = self.state.step % self.steps_per_epoch

        def load(draws: tuple[Draw, ...]) -> Batch:
            frames = [self.prepared.train.show(draw, epoch) for draw in draws]
            return collate(frames, self.prepared.preprocessing)

        plan = plan_draws(self.prepared.train.items, self.config, epoch)
        yield from prefetch(load, plan[done:], workers=self._workers, ahead=self._ahead)

    def _step(self, batch: Batch, progress: Progress) -> None:
        state, device = self.state, self.prepared.device
        rate = self._learning_rate(state.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        images = batch.images.to(device, memory_format=torch.channels_last)
        with torch.autocast(
            device.type,
            dtype=torch.bfloat16,
            enabled=self.prepared.precision == torch.bfloat16,
        ):
            logits = self.prepared.network(images)
        loss = self.prepared.loss(logits, batch.targets.to(device), batch.valid.to(device))
        value = float(loss.detach())
        if not math.isfinite(value):
            raise diverged("loss", f"at step {state.step + 1}")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        gradient_norm = nn.utils.clip_grad_norm_(
            self.prepared.network.parameters(), self.config.optimizer.max_gradient_norm
        )
        if not math.isfinite(float(gradient_norm)):
            raise diverged("gradient", f"at step {state.step + 1}")
        self.optimizer.step()
        state.step += 1
        self._tick()
        state.seen_pixels += batch.valid.numel()
        state.padded_pixels += int((~batch.valid).sum())
        state.seen_frames += len(batch.targets)
        state.seen_defective += int(batch.targets.any(dim=(1, 2, 3)).sum())
        progress.step(state.step, self.steps_total, self.epoch, value)
        if time.monotonic() - self._checkpointed_s >= self.config.checkpoint_every_s:
            self._checkpoint()

    def _learning_rate(self, step: int) -> float:
        """Return the rate of one step: linear warm-up, then a cosine to zero.

        Under a time limit the cosine follows whichever of steps and minutes is nearer its end, so
        that a run cut by the clock has come to rest as well. Each rewind halves the rate.
        """
        section = self.config.optimizer
        peak = section.learning_rate * 0.5**self.state.rewinds
        warmup = min(section.warmup_steps, self.steps_total // 4)
        if step < warmup:
            return peak * (step + 1) / (warmup + 1)
        rest = (step - warmup) / max(self.steps_total - warmup, 1)
        if self.config.budget.max_minutes is not None:
            elapsed = self.state.elapsed_s / (60 * self.config.budget.max_minutes)
            rest = min(max(rest, elapsed), 1.0)
        return peak * 0.5 * (1 + math.cos(math.pi * rest))

    def _tick(self) -> None:
        now_s = time.monotonic()
        self.state.elapsed_s += now_s - self._ticked_s
        self._ticked_s = now_s

    def _out_of_time(self) -> bool:
        limit_min = self.config.budget.max_minutes
        return limit_min is not None and self.state.elapsed_s >= 60 * limit_min

    def _at_limit(self) -> bool:
        return self.state.step >= self.steps_total or self._out_of_time()

    def _close_epoch(self) -> None:
        state = self.state
        state.closed_epochs = self.epoch
        last = self._at_limit()
        if last or self.epoch % self.look_every_epochs == 0:
            self._look_at_calibration()
        stopping = self.config.early_stopping
        if last:
            state.ended_by = "steps" if state.step >= self.steps_total else "max_minutes"
        elif stopping and self.epoch - state.best_epoch >= stopping.patience_epochs:
            state.ended_by = "early_stopping"

    def _look_at_calibration(self) -> None:
        prepared, state = self.prepared, self.state
        forward = EvalForward(prepared.network, prepared.preprocessing, prepared.device)
        histograms = score_histograms(
            forward,
            whole_frames(prepared.calibration),
            tuple(prepared.manifest.classes),
        )
        by_class = {name: histogram.best_dice()[0] for name, histogram in histograms.items()}
        known = [score for score in by_class.values() if score is not None]
        mean = sum(known) / len(known) if known else 0.0
        values = {f"calibration_dice/{name}": score for name, score in by_class.items()}
        self.events.write(
            "metrics",
            step=state.step,
            epoch=self.epoch,
            values={"calibration_dice": mean, **values},
        )
        # Without a labelled calibration pixel there is nothing to choose by: the last weights win.
        if mean > state.best_dice or not known:
            state.best_dice = mean
            state.best_epoch = self.epoch
            state.best_weights = {
                name: tensor.detach().cpu().clone()
                for name, tensor in prepared.network.state_dict().items()
                if name in self._plain_names
            }
        self._save(self.run.rewind_points)

    def _checkpoint(self) -> None:
        """Save and say so, which tells whoever starts runs again that this attempt came further."""
        self._save(self.run.checkpoints)
        self.events.write("checkpoint", step=self.state.step)
        self._checkpointed_s = time.monotonic()

    def _save(self, directory: Path) -> None:
        state: dict[str, Any] = {
            "network": self.prepared.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "state": dict(vars(self.state)),
            "rng": torch.get_rng_state(),
        }
        if self.prepared.device.type == "cuda":
            state["cuda_rng"] = torch.cuda.get_rng_state(self.prepared.device)
        save_checkpoint(directory, self.state.step, state)


def diverged(what: str, where: str) -> DivergedError:
    """Return the error for a loss, a gradient or probabilities that are no numbers."""
    return DivergedError(
        f"{what}_not_finite",
        f"the {what} came out as infinite or no number {where}",
        hint="use a lower optimizer.learning_rate or precision float32",
    )


def plain_state_names(network: nn.Module) -> frozenset[str]:
    """Return the names that the network's state has once its norms are plain again."""
    return frozenset(restore_batchnorm(copy.deepcopy(network)).state_dict())


def _build_optimizer(network: nn.Module, config: RunConfig) -> torch.optim.AdamW:
    """Return AdamW that decays matrices and filters but neither biases nor norms' parameters."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    groups = [
        {
            "params": [p for p in parameters if p.ndim >= 2],
            "weight_decay": config.optimizer.weight_decay,
        },
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.optimizer.learning_rate)
