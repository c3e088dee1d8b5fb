"""How fast a run was and how much memory it took, for whoever has to pay for it."""

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models import Detections, Pixels
from training.config import CropResolution, RunConfig
from training.detection_evaluation import DetectionModel
from training.evaluation import ProbabilityModel
from training.loop_state import LoopState


class StopWatch:
    """Notes how long a model took for each frame.

    The first frame warms the device up and is not counted unless it is the only one.
    """

    def __init__(self) -> None:
        self._seconds: list[float] = []

    @contextmanager
    def frame(self) -> Iterator[None]:
        """Time the block, at whose end the device has done its work."""
        begin = time.perf_counter()
        yield
        self._seconds.append(time.perf_counter() - begin)

    def summary(self) -> dict[str, Any]:
        """Return frames a second and over how many frames."""
        timed = self._seconds[1:] or self._seconds
        return {
            "frames_per_s": len(timed) / sum(timed) if timed else None,
            "frames_timed": len(timed),
        }


@dataclass(frozen=True)
class TimedModel:
    """Answers with the probabilities that a model answers with, timed."""

    model: ProbabilityModel
    watch: StopWatch

    def probabilities(self, pixels: Pixels) -> NDArray[np.float32]:
        """Return what the model answers."""
        with self.watch.frame():
            return self.model.probabilities(pixels)


@dataclass(frozen=True)
class TimedDetector:
    """Answers with the boxes that a detector answers with, timed."""

    model: DetectionModel
    watch: StopWatch

    def detections(self, pixels: Pixels) -> Detections:
        """Return what the model answers."""
        with self.watch.frame():
            return self.model.detections(pixels)


def training_speed(config: RunConfig, state: LoopState) -> dict[str, Any]:
    """Return what training showed the network and how fast, calibration looks included."""
    seconds = max(state.elapsed_s, 1e-9)
    megapixels = (state.seen_pixels - state.padded_pixels) / 1e6
    return {
        "shown": "windows" if isinstance(config.resolution, CropResolution) else "frames",
        "count": state.seen_frames,
        "megapixels": round(megapixels, 3),
        "seconds": round(state.elapsed_s, 2),
        "frames_per_s": state.seen_frames / seconds,
        "megapixels_per_s": megapixels / seconds,
    }


def peak_memory(device: torch.device, *, resumed: bool) -> dict[str, Any]:
    """Return the most memory that this process has held so far.

    On a GPU that is what tensors took of it, else the resident memory of the whole process.
    A resumed run only knows of its last process.
    """
    if device.type == "cuda":
        peak_bytes, of = torch.cuda.max_memory_allocated(device), "gpu"
    else:
        # Linux counts in KiB.
        peak_bytes, of = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, "process"
    since = "last resume" if resumed else "start"
    return {"peak_bytes": peak_bytes, "of": of, "since": since}
