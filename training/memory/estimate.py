"""From bytes and seconds of dry steps to what a run takes at its peak: pure functions."""

from dataclasses import dataclass, field
from typing import Any

# Measured by ``python -m benchmarks.preflight``: the resident set of a step on a CPU is above the
# tensors it holds by what kernels pack and scatter for themselves and the allocator keeps back.
CPU_STEP_FACTOR = 1.2
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


def phase_peaks(held: Holdings, *, on_cpu: bool, step_factor: float) -> dict[str, int]:
    """Return the peak of each phase in bytes.

    Args:
        held: What was counted.
        on_cpu: The process's resident set is meant, else the memory of a GPU.
        step_factor: What a step takes in all, as a multiple of the tensors it is seen to hold.
    """
    base = held.process - held.network
    beside = held.loading + held.best_weights if on_cpu else 0
    working = held.step_peak - held.kept
    constant = CPU_STEP_BYTES if on_cpu else 0
    peaks = {
        "training_step": base + beside + held.kept + int(step_factor * working) + constant,
        # The frozen model is a second network.
        "whole_frame": base + beside + held.kept + held.network + held.look_peak,
    }
    if on_cpu:
        # A checkpoint holds no gradients, which are as large as the best weights.
        stored = held.kept
        peaks["checkpoint"] = base + beside + held.kept + int(CHECKPOINT_FACTOR * stored)
    return peaks


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
