"""A sensor under Bayer filters, and what its mosaic becomes: plain, slow, in whole numbers."""

from typing import Any

import numpy as np

CHANNELS = "RGB"


def filters_of(height: int, width: int, pattern: str) -> Any:
    """Return the channel (H, W) that each pixel's filter lets through: 0, 1 or 2.

    Args:
        height: Pixels.
        width: Pixels.
        pattern: Top left, top right, bottom left, bottom right.
    """
    cell = np.array([CHANNELS.index(letter) for letter in pattern]).reshape(2, 2)
    return cell[np.arange(height)[:, None] % 2, np.arange(width)[None, :] % 2]


def mosaic_of(rgb: Any, pattern: str) -> Any:
    """Return what a sensor under the filters sees of a picture (H, W, 3), as (H, W)."""
    height, width = rgb.shape[:2]
    filters = filters_of(height, width, pattern)
    return np.take_along_axis(rgb, filters[:, :, None], axis=2)[:, :, 0]


def demosaiced(mosaic: Any, pattern: str) -> Any:
    """Return (H, W, 3): a pixel keeps its own colour, the others are means of those around it.

    Means over the 3x3 pixels around are rounded half up; the border repeats what is inside it.
    """
    height, width = mosaic.shape
    filters = filters_of(height, width, pattern)
    rgb = np.zeros((height, width, 3), np.int64)
    for y in range(1, height - 1):
        for x in range(1, width - 1):
            around = (slice(y - 1, y + 2), slice(x - 1, x + 2))
            for channel in range(3):
                found = mosaic[around][filters[around] == channel].astype(np.int64)
                mean = (2 * found.sum() + found.size) // (2 * found.size)
                rgb[y, x, channel] = mean if filters[y, x] != channel else mosaic[y, x]
    return np.pad(rgb[1:-1, 1:-1], [(1, 1), (1, 1), (0, 0)], mode="edge").astype(mosaic.dtype)
