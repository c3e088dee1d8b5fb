"""Mean, deviation and share of labelled pixels of training frames, as the network sees them."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from data import FrameDataset
from training.resizing import resize_frame

# Mean, deviation and foreground rate are means over millions of pixels a frame; more frames than
# these change them little and cost minutes on a large set.
MEASURED_FRAMES = 64


@dataclass(frozen=True)
class Measurements:
    """What was measured on training frames.

    Attributes:
        mean: Per channel, in the frames' own units.
        std: Per channel, in the same units.
        foreground_rate: Per class, share of labelled pixels.
        frames: How many frames were read.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    foreground_rate: tuple[float, ...]
    frames: int


def measure(dataset: FrameDataset, resize_factor: float = 1.0) -> Measurements:
    """Return mean, deviation and foreground rate over evenly spread frames, as training sees them.

    Args:
        dataset: Whole frames.
        resize_factor: At which the network sees them.
    """
    count = len(dataset)
    indices = np.unique(np.linspace(0, count - 1, min(count, MEASURED_FRAMES)).round().astype(int))
    pixel_count = 0
    total: Any = 0.0
    squares: Any = 0.0
    labelled: Any = 0.0
    for index in indices:
        frame = resize_frame(dataset.frame(int(index), epoch=0), resize_factor)
        values = frame.pixels.reshape(-1, frame.pixels.shape[2]).astype(np.float64)
        pixel_count += len(values)
        total = total + values.sum(axis=0)
        squares = squares + np.square(values).sum(axis=0)
        labelled = labelled + frame.mask.sum(axis=(0, 1), dtype=np.int64)
    mean = total / pixel_count
    # Float64 holds sums of squares of 16-bit values exactly up to two million 5-megapixel frames.
    variance = np.maximum(squares / pixel_count - np.square(mean), 0)
    # Frames of one grey level have no deviation to divide by; one unit leaves them at zero.
    std = np.maximum(np.sqrt(variance), 1.0)
    return Measurements(
        mean=tuple(float(value) for value in mean),
        std=tuple(float(value) for value in std),
        foreground_rate=tuple(float(value) for value in labelled / pixel_count),
        frames=len(indices),
    )
