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
from training.batches import (
    TaskBatch,
    count_steps,
    largest_batch_bytes,
    plan_steps,
    split_evenly,
)
from training.checkpoint import (
    discard_checkpoints_after,
    load_latest_checkpoint,
    save_checkpoint,
)
from training.config import RunConfig
from training.errors import DivergedError
from training.events import EventLog
from training.loop_state import LoopState, Trained, checkpoint_content, restore_checkpoint
from training.memory.shortage import looking, release_memory, return_free_pages
from training.memory.step_in_flight import step_in_flight
from training.optimizer_step import ALONE, take_step
from training.preparation import Prepared, learner_of
from training.progress import Progress
from training.ranks import Ranks
from training.run_directory import RunDirectory
from training.schedule import build_optimizer, learning_rate
from training.task import Look
from training.weight_average import WeightAverage
from training.yielding import read_yielding

# Rates eight times lower than asked for would train a network that nobody asked for.
MOST_REWINDS = 3


class TrainingLoop:
    """Trains the prepared network until a limit, early stopping or a cancel request ends it.

    With several processes each runs its own, in step with the others.

    Side effects: changes the network; the first rank's writes events and checkpoints into the run's
    directory.
    """

    def __init__(
        self,
        config: RunConfig,
        prepared: Prepared,
        run: RunDirectory,
        events: EventLog,
        ranks: Ranks = ALONE,
    ) -> None:
        self.config = config
        self.prepared = prepared
        self.run = run
        self.events = events
        self.ranks = ranks
        self.state = LoopState()
        items = prepared.train.items
        self.steps_per_epoch, self.steps_total = count_steps(items, config)
        workers = config.data.workers
        self._workers = max(1, default_workers() // ranks.count) if workers is None else workers
        batch_bytes = largest_batch_bytes(items, config, len(prepared.manifest.classes))
        self._ahead = batches_ahead(self._workers, batch_bytes)
        epochs_total = math.ceil(self.steps_total / self.steps_per_epoch)
        self.look_every_epochs = max(1, math.ceil(epochs_total / config.calibration_looks))
        self.learner = learner_of(prepared)
        self.trained = Trained(
            prepared.network,
            build_optimizer(prepared.network, config.optimizer),
            WeightAverage(prepared.network, config.ema.decay)
            if config.ema is not None and ranks.is_first
            else None,
            prepared.device,
        )
        self._checkpointed_s = self._ticked_s = time.monotonic()
        self._yielding = read_yielding(run.yield_request)
        self._told_of_pauses = False

    def resume(self, checkpoint: dict[str, Any]) -> None:
        """Go on from a checkpoint that this run wrote.

        Raises:
            CheckpointError: It was written by another number of processes.
        """
        self.state = restore_checkpoint(checkpoint, self.trained, self.ranks)

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
                self._make_way()
                if self.ranks.from_first(self.run.cancel_requested):
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
        if self.ranks.is_first:
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
        """Yield this rank's micro-batches of each optimizer step that is left of the epoch."""
        epoch = self.epoch
        done = self.state.step % self.steps_per_epoch

        def load(draws: tuple[Draw, ...]) -> TaskBatch:
            frames = [self.prepared.train.show(draw, epoch) for draw in draws]
            return self.prepared.task.collate(frames)

        steps = plan_steps(self.prepared.train.items, self.config, epoch)[done:]
        parts = [split_evenly(step, self.ranks.count)[self.ranks.rank] for step in steps]
        keys = [draws for part in parts for draws in part]
        loaded = prefetch(load, keys, workers=self._workers, ahead=self._ahead)
        with contextlib.closing(loaded):
            for part in parts:
                yield list(itertools.islice(loaded, len(part)))

    def _step(self, batches: list[TaskBatch], progress: Progress) -> None:
        state, section = self.state, self.config.optimizer
        rate = learning_rate(
            section,
            state.step,
            self.steps_total,
            time_spent=self._time_spent(),
            rewinds=state.rewinds,
        )
        for group in self.trained.optimizer.param_groups:
            group["lr"] = rate
        self.prepared.loss.set_progress(max(state.step / self.steps_total, self._time_spent()))
        with self._in_flight():
            result = take_step(
                self.learner,
                batches,
                self.trained.optimizer,
                max_gradient_norm=section.max_gradient_norm,
                step=state.step + 1,
                ranks=self.ranks,
            )
        state.step += 1
        if self.trained.average is not None:
            self.trained.average.update(self.prepared.network, state.step)
        checkpoint_due = self._tick()
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
        if checkpoint_due:
            self._checkpoint()

    def _in_flight(self) -> contextlib.AbstractContextManager[None]:
        """Leave a trace while a step is at work; one of all ranks is enough."""
        if not self.ranks.is_first:
            return contextlib.nullcontext()
        return step_in_flight(self.run.step_in_flight, self.state.step + 1)

    def _make_way(self) -> None:
        """Pause while a line is asking for verdicts; the other ranks wait for the first one."""
        if not self.ranks.is_first:
            return
        # The device's memory that nothing refers to is the line's as well.
        paused_s = self._yielding.pause(
            until=lambda: self.run.cancel_requested, begin=release_memory
        )
        if paused_s == 0:
            return
        # A pause is no training time.
        self._ticked_s += paused_s
        self.events.write("paused", step=self.state.step, paused_s=round(paused_s, 2))
        if not self._told_of_pauses:
            self._told_of_pauses = True
            self.events.warning(
                "training_pauses",
                "frames are being inspected on this machine, so training pauses between its "
                f"steps, for {self._yielding.longest_pause_s:g} s at a time at most",
            )

    def _tick(self) -> bool:
        """Count the time since the last call; return whether a checkpoint is due."""
        now_s = time.monotonic()
        elapsed_s = self.state.elapsed_s + now_s - self._ticked_s
        self._ticked_s = now_s
        due = now_s - self._checkpointed_s >= self.config.checkpoint_every_s
        # Time decides the learning rate and the end: all ranks must go by the same clock.
        self.state.elapsed_s, due = self.ranks.from_first((elapsed_s, due))
        return due

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
        return_free_pages()
        state, average = self.state, self.trained.average
        shown = average.applied_to(self.prepared.network) if average else contextlib.nullcontext()
        with shown:
            look = self._agreed_look()
            # Without a labelled calibration frame there is nothing to choose by: the last win.
            if look.score is None or look.score > state.best_score:
                state.best_score = look.score or 0.0
                state.best_epoch = self.epoch
                if self.ranks.is_first:
                    state.best_weights = {
                        name: tensor.detach().cpu().clone()
                        for name, tensor in plain_state_dict(self.prepared.network).items()
                    }
        values = look.values()
        if state.loss_steps:
            values["training_loss"] = state.loss_sum / state.loss_steps
        self.events.write("metrics", step=state.step, epoch=self.epoch, values=values)
        state.loss_sum, state.loss_steps = 0.0, 0
        self._save(self.run.rewind_points)

    def _agreed_look(self) -> Look:
        """Let the first rank look, and return on all of them what it saw.

        Raises:
            DivergedError: It saw a probability that is no number.
        """
        look: Look | None = None
        trouble: tuple[str, str, str | None] | None = None
        if self.ranks.is_first:
            try:
                with (
                    looking(),
                    step_in_flight(self.run.step_in_flight, self.state.step, looking=True),
                ):
                    look = self.prepared.look()
            except DivergedError as error:
                trouble = (error.code, error.detail, error.hint)
        look, trouble = self.ranks.from_first((look, trouble))
        if look is None:
            assert trouble is not None
            code, detail, hint = trouble
            raise DivergedError(code, detail, hint=hint)
        return look

    def _checkpoint(self) -> None:
        """Save and say so, which tells whoever starts runs again that this attempt came further."""
        self._save(self.run.checkpoints)
        self.events.write("checkpoint", step=self.state.step)
        self._checkpointed_s = time.monotonic()

    def _save(self, directory: Path) -> None:
        return_free_pages()
        content = checkpoint_content(self.state, self.trained, self.ranks)
        if self.ranks.is_first:
            save_checkpoint(directory, self.state.step, content)
