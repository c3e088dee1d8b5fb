"""What the training loop must know of a task: its batches and its scores."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import nn

from data import Frame
from training.batches import TaskBatch


@dataclass(frozen=True)
class Look:
    """What a look at the calibration frames came to.

    Attributes:
        name: What is scored.
        score: The mean over the classes that the frames show, higher is better; None if they show
            none.
        by_class: The score of each class, None where no frame shows it.
    """

    name: str
    score: float | None
    by_class: dict[str, float | None]

    def values(self) -> dict[str, float | None]:
        """Return the look as the values of a ``metrics`` event."""
        name = f"calibration_{self.name}"
        by_class = {f"{name}/{key}": score for key, score in self.by_class.items()}
        return {name: self.score or 0.0, **by_class}


class Task(Protocol):
    """A task that `TrainingLoop` can train.

    Attributes:
        score_name: What a look scores.
    """

    score_name: str

    def collate(self, frames: Sequence[Frame]) -> TaskBatch:
        """Return frames as one batch."""

    def look(self, network: nn.Module, frames: Iterable[Frame]) -> Look:
        """Score the network on whole frames, in eval mode; its mode is restored."""
