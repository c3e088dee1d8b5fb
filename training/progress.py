"""Progress for two readers: events for programs, a bar for a person at a terminal."""

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from training.events import EventLog

EVERY_S = 1.0


class Progress:
    """Writes events at most once a second and draws a bar on a terminal.

    Args:
        events: The run's events.
        epochs_total: At most; early stopping may end it before.
        drawn: Whether to draw the bar where there is a terminal.
    """

    def __init__(self, events: EventLog, epochs_total: int, *, drawn: bool = True) -> None:
        self._events = events
        self._epochs_total = epochs_total
        self._written_s = 0.0
        self._started_at_step: int | None = None
        self._started_s = time.monotonic()
        self._losses: list[float] = []
        self._gradient_norms: list[float] = []
        self._bar = Bar(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.3f}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not (drawn and sys.stderr.isatty()),
        )
        self._task = self._bar.add_task("training", total=None, loss=float("nan"))

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def rewound(self) -> None:
        """Measure the pace anew: the next step may be an earlier one."""
        self._started_at_step = None
        self._started_s = time.monotonic()
        self._losses.clear()
        self._gradient_norms.clear()

    def step(
        self,
        step: int,
        steps_total: int,
        epoch: int,
        loss: float,
        *,
        learning_rate: float,
        gradient_norm: float,
    ) -> None:
        """Tell of one finished step.

        In the event ``loss`` is the mean and ``gradient_norm`` the largest since the last one.
        """
        self._losses.append(loss)
        self._gradient_norms.append(gradient_norm)
        if self._started_at_step is None:
            self._started_at_step = step - 1
        self._bar.update(self._task, completed=step, total=steps_total, loss=loss)
        now_s = time.monotonic()
        if now_s - self._written_s < EVERY_S and step < steps_total:
            return
        pace_s = (now_s - self._started_s) / (step - self._started_at_step)
        self._events.write(
            "progress",
            step=step,
            steps_total=steps_total,
            epoch=epoch,
            epochs_total=self._epochs_total,
            eta_s=round(pace_s * (steps_total - step), 1),
        )
        values = {
            "loss": sum(self._losses) / len(self._losses),
            "learning_rate": learning_rate,
            "gradient_norm": max(self._gradient_norms),
        }
        self._events.write("metrics", step=step, epoch=epoch, values=values)
        self._losses.clear()
        self._gradient_norms.clear()
        self._written_s = now_s
