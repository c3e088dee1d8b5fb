"""Why a run can't go on.

TrainingError
├── ConfigError      the configuration, or the data it names, can't be trained on
├── CheckpointError  no checkpoint on disk can be used
├── DivergedError    the loss or the gradient is no longer a number
├── OutOfMemory      the run does not fit, whatever it may give up
├── RanksDisagreeError  processes that share a training hold different weights
├── ParityError      the frozen model does not answer as the trained one
└── RunLockedError   another process is at work in the run's directory
"""


class TrainingError(Exception):
    """An error a person can act on: what happened and what to do about it."""

    def __init__(self, code: str, detail: str, *, hint: str | None = None) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.hint = hint


class ConfigError(TrainingError):
    """The configuration, or the data it names, can't be trained on."""


class CheckpointError(TrainingError):
    """No checkpoint on disk can be used."""


class DivergedError(TrainingError):
    """The loss or the gradient is no longer a number."""


class OutOfMemory(TrainingError):  # noqa: N818 - it says what is the matter.
    """The run does not fit into the device's memory, whatever it may give up."""


class RanksDisagreeError(TrainingError):
    """Processes that share a training hold different weights."""


class ParityError(TrainingError):
    """The frozen model does not answer as the trained one."""


class RunLockedError(TrainingError):
    """Another process is at work in the run's directory."""


def diverged(what: str, where: str) -> DivergedError:
    """Return the error for a loss, a gradient or probabilities that are no numbers."""
    return DivergedError(
        f"{what}_not_finite",
        f"the {what} came out as infinite or no number {where}",
        hint="use a lower optimizer.learning_rate or precision float32",
    )
