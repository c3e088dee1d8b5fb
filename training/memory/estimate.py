"""From bytes and seconds of dry steps to what a run takes at its peak: pure functions."""

from dataclasses import dataclass, field
from typing import Any

# Measured by ``python -m benchmarks.preflight``: the resident set of a step on a CPU is above the
# tensors it holds. Blocks below 32 MB lie on glibc's heap and leave holes there; larger ones are
# mapped and given back, so that the surplus does not grow with the frames for ever. And what
# kernels keep for themselves does not depend on the frames at all.
CPU_STEP_SHARE = 0.2
CPU_STEP_MOST_BYTES = 300_000_000
CPU_STEP_BYTES = 60_000_000
# A look at a whole frame on a CPU, beside the network's own tensors, in bytes a pixel and class:
# the map of probabilities, its histogram's bins and what counting them copies.
LOOK_BYTES_A_PIXEL_AND_CLASS = 24
# And whatever the number of classes: the frame, its mask, the maps in which regions are numbered.
LOOK_BYTES_A_PIXEL = 32
# `torch.save` writes a checkpoint into one growing piece of memory.
CHECKPOINT_FACTOR = 1.125


@dataclass(frozen=True)
class Holdings:
    """What a run holds, in bytes; each was measured or counted, nothing is assumed.

    Attributes:
        process: Of the process after a small dry step, the network included.
        network: Parameters and buffers, also counted in ``process``.
        kept: From step to step: network, gradients, optimizer.
        step_peak: At most within a step, what is kept included.
        look_peak: Within a look at a whole frame, beyond the network.
        loading: Batches that wait, and what the threads that load hold.
        best_weights: The weights of the best look, and their moving average if there is one.
    """

    process: int
    network: int
    kept: int
    step_peak: int
    look_peak: int
    loading: int
    best_weights: int


@dataclass(frozen=True)
class Estimate:
    """What a run will take.

    Attributes:
        peak_bytes: Of the process on a CPU, of the device on a GPU.
        phase_bytes: The peak of each phase; the largest is the run's.
        step_s: Seconds of a step, as the smallest and the largest extrapolation from small frames.
        steps: Of the whole run, early stopping aside.
    """

    peak_bytes: int
    phase_bytes: dict[str, int]
    step_s: tuple[float, float] = (0.0, 0.0)
    steps: int = 0
    details: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON."""
        low, high = self.step_s
        return {
            "peak_bytes": self.peak_bytes,
            "phase_bytes": self.phase_bytes,
            "step_s": [round(low, 4), round(high, 4)],
            "training_s": [round(low * self.steps, 1), round(high * self.steps, 1)],
            "steps": self.steps,
            **self.details,
        }


def phase_peaks(held: Holdings, *, gpu_step_factor: float | None) -> dict[str, int]:
    """Return the peak of each phase in bytes.

    Args:
        held: What was counted.
        gpu_step_factor: What a step takes of the GPU in all, as a multiple of the tensors it is
            seen to hold; None means the resident set of a process on a CPU.
    """
    base = held.process - held.network
    working = held.step_peak - held.kept
    if gpu_step_factor is not None:
        return {
            "training_step": base + held.kept + int(gpu_step_factor * working),
            "whole_frame": base + held.kept + held.network + held.look_peak,
        }
    base += held.loading + held.best_weights
    surplus = CPU_STEP_BYTES + min(int(CPU_STEP_SHARE * working), CPU_STEP_MOST_BYTES)
    return {
        "training_step": base + held.kept + working + surplus,
        # The frozen model is a second network.
        "whole_frame": base + held.kept + held.network + held.look_peak,
        # A checkpoint holds no gradients, which are as large as the best weights.
        "checkpoint": base + held.kept + int(CHECKPOINT_FACTOR * held.kept),
    }


def step_time(
    pixels: tuple[int, int], seconds: tuple[float, float], target: int
) -> tuple[float, float]:
    """Return the least and the most that a step may take at a size, from two smaller sizes.

    In proportion to the pixels from the larger one, which counts what does not grow with them as
    if it did; and along the line through both, which takes what varied between two single steps
    for growth.
    """
    small, large = pixels
    proportional = seconds[1] * target / large
    slope = (seconds[1] - seconds[0]) / (large - small) if large > small else 0.0
    linear = seconds[1] + max(slope, 0.0) * (target - large)
    return min(proportional, linear), max(proportional, linear)
