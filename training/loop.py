"""The training loop: batches in, a network with better weights out, resumable at any step."""

import contextlib
import itertools
import math
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

from data import Draw
from data.loader import batches_ahead, default_workers, prefetch
from norm import plain_state_dict
from training.batches import TaskBatch, count_steps, largest_batch_bytes, plan_steps
from training.checkpoint import (
    discard_checkpoints_after,
    load_latest_checkpoint,
    save_checkpoint,
)
from training.config import RunConfig
from training.errors import DivergedError
from training.evaluation import whole_frames
from training.events import EventLog
from training.loop_state import LoopState, checkpoint_content, restore_checkpoint
from training.memory.step_in_flight import step_in_flight
from training.optimizer_step import take_step
from training.preparation import Prepared, learner_of
from training.progress import Progress
from training.run_directory import RunDirectory
from training.schedule import build_optimizer, learning_rate
from training.weight_average import WeightAverage

# Calibration frames are looked at about this often in a run, since on a CPU a look at whole frames
# costs as much as many steps.
LOOKS_A_RUN = 12
# Rates eight times lower than asked for would train a network that nobody asked for.
MOST_REWINDS = 3


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
        self.learner = learner_of(prepared)
        self.optimizer = build_optimizer(prepared.network, config.optimizer)
        self.average = WeightAverage(prepared.network, config.ema.decay) if config.ema else None
        self._checkpointed_s = self._ticked_s = time.monotonic()

    def resume(self, checkpoint: dict[str, Any]) -> None:
        """Go on from a checkpoint that this run wrote."""
        prepared = self.prepared
        self.state = restore_checkpoint(
            checkpoint, prepared.network, self.optimizer, prepared.device, self.average
        )

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
        with contextlib.closing(self._rest_of_epoch()) as steps:
            for batches in steps:
                if self.run.cancel_requested:
                    return False
                self._step(batches, progress)
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

    def _rest_of_epoch(self) -> Generator[list[TaskBatch]]:
        """Yield the micro-batches of each optimizer step that is left of the epoch."""
        epoch = self.epoch
        done = self.state.step % self.steps_per_epoch

        def load(draws: tuple[Draw, ...]) -> TaskBatch:
            frames = [self.prepared.train.show(draw, epoch) for draw in draws]
            return self.prepared.task.collate(frames)

        steps = plan_steps(self.prepared.train.items, self.config, epoch)[done:]
        keys = [draws for step in steps for draws in step]
        loaded = prefetch(load, keys, workers=self._workers, ahead=self._ahead)
        with contextlib.closing(loaded):
            for step in steps:
                yield list(itertools.islice(loaded, len(step)))

    def _step(self, batches: list[TaskBatch], progress: Progress) -> None:
        state, section = self.state, self.config.optimizer
        rate = learning_rate(
            section,
            state.step,
            self.steps_total,
            time_spent=self._time_spent(),
            rewinds=state.rewinds,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.prepared.loss.set_progress(state.step / self.steps_total)
        with step_in_flight(self.run.step_in_flight, state.step + 1):
            result = take_step(
                self.learner,
                batches,
                self.optimizer,
                max_gradient_norm=section.max_gradient_norm,
                step=state.step + 1,
            )
        state.step += 1
        if self.average is not None:
            self.average.update(self.prepared.network, state.step)
        self._tick()
        state.loss_sum += result.loss
        state.loss_steps += 1
        state.seen_pixels += result.seen.pixels
        state.padded_pixels += result.seen.pixels - result.seen.valid_pixels
        state.seen_frames += result.seen.frames
        state.seen_defective += result.seen.defective_frames
        progress.step(
            state.step,
            self.steps_total,
            self.epoch,
            result.loss,
            learning_rate=rate,
            gradient_norm=result.gradient_norm,
        )
        if time.monotonic() - self._checkpointed_s >= self.config.checkpoint_every_s:
            self._checkpoint()

    def _tick(self) -> None:
        now_s = time.monotonic()
        self.state.elapsed_s += now_s - self._ticked_s
        self._ticked_s = now_s

    def _time_spent(self) -> float:
        """Return the used share of the limit on time, 0 where there is none."""
        limit_min = self.config.budget.max_minutes
        return 0.0 if limit_min is None else self.state.elapsed_s / (60 * limit_min)

    def _at_limit(self) -> bool:
        return self.state.step >= self.steps_total or self._time_spent() >= 1

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
        """Judge the weights on the calibration frames and keep them if they are the best so far."""
        prepared, state = self.prepared, self.state
        average = self.average
        shown = average.applied_to(prepared.network) if average else contextlib.nullcontext()
        with shown:
            look = prepared.task.look(prepared.network, whole_frames(prepared.calibration))
            # Without a labelled calibration frame there is nothing to choose by: the last win.
            if look.score is None or look.score > state.best_score:
                state.best_score = look.score or 0.0
                state.best_epoch = self.epoch
                state.best_weights = {
                    name: tensor.detach().cpu().clone()
                    for name, tensor in plain_state_dict(prepared.network).items()
                }
        values = look.values()
        if state.loss_steps:
            values["training_loss"] = state.loss_sum / state.loss_steps
        self.events.write("metrics", step=state.step, epoch=self.epoch, values=values)
        state.loss_sum, state.loss_steps = 0.0, 0
        self._save(self.run.rewind_points)

    def _checkpoint(self) -> None:
        """Save and say so, which tells whoever starts runs again that this attempt came further."""
        self._save(self.run.checkpoints)
        self.events.write("checkpoint", step=self.state.step)
        self._checkpointed_s = time.monotonic()

    def _save(self, directory: Path) -> None:
        prepared = self.prepared
        content = checkpoint_content(
            self.state, prepared.network, self.optimizer, prepared.device, self.average
        )
        save_checkpoint(directory, self.state.step, content)
