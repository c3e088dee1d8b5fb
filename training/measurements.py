"""Mean, deviation and share of labelled pixels of training frames, as the network sees them."""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from data import FrameDataset
from training.evenly_spread import evenly_spread
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
    indices = evenly_spread(len(dataset), MEASURED_FRAMES)
    pixel_count = 0
    total: Any = 0.0
    squares: Any = 0.0
    labelled: Any = 0.0
    for index in indices:
        frame = resize_frame(dataset.frame(index, epoch=0), resize_factor)
        pixels = frame.pixels.shape[0] * frame.pixels.shape[1]
        pixel_count += pixels
        # One pass without a copy in float64, which on large frames takes most of a preparation.
        mean, std = (values.ravel() for values in cv2.meanStdDev(frame.pixels))
        total = total + pixels * mean
        squares = squares + pixels * (np.square(std) + np.square(mean))
        labelled = labelled + _labelled_px(frame.mask)
    mean = total / pixel_count
    # Sums of squares of 16-bit values leave float64 twenty bits for what rounding takes.
    variance = np.maximum(squares / pixel_count - np.square(mean), 0)
    # Frames of one grey level have no deviation to divide by; one unit leaves them at zero.
    std = np.maximum(np.sqrt(variance), 1.0)
    return Measurements(
        mean=tuple(float(value) for value in mean),
        std=tuple(float(value) for value in std),
        foreground_rate=tuple(float(value) for value in labelled / pixel_count),
        frames=len(indices),
    )


def _labelled_px(mask: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return how many pixels of a mask (H, W, K) of 0 and 1 are labelled, (K,)."""
    planes = np.moveaxis(mask, 2, 0)
    return np.array([cv2.countNonZero(np.ascontiguousarray(plane)) for plane in planes], np.int64)
