"""Frames and labels as a person sees them: 8 bits, class colours, outlines."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

# A class's index and where it is marked, (H, W) uint8 of 0 and 1.
MarkedClass = tuple[int, NDArray[np.uint8]]

# Okabe and Ito's palette (https://jfly.uni-koeln.de/color/): told apart by colour-blind people
# too, and bright enough on grey metal.
_PALETTE_RGB = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)


def class_colour(index: int) -> tuple[int, int, int]:
    """Return the RGB colour of the class with this index; it repeats after seven."""
    return _PALETTE_RGB[index % len(_PALETTE_RGB)]


def to_display(
    pixels: NDArray[np.uint8] | NDArray[np.uint16], levels: tuple[int, int] | None = None
) -> NDArray[np.uint8]:
    """Return (H, W, 3) uint8 for a screen; 16 bits are stretched from darkest to brightest.

    A 12-bit camera's frame in 16 bits would be black without the stretch.

    Args:
        pixels: (H, W) or (H, W, 3).
        levels: Darkest and brightest value of the frame of which ``pixels`` are a reduction.
    """
    if pixels.dtype == np.uint16:
        low, high = levels or (int(pixels.min()), int(pixels.max()))
        scaled = (pixels.astype(np.float32) - low) * (255 / max(high - low, 1))
        display = scaled.round().astype(np.uint8)
    else:
        display = pixels.astype(np.uint8, copy=False)
    return display if display.ndim == 3 else np.repeat(display[:, :, None], 3, axis=2)


def shrink_plane(plane: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """Return a (height, width) plane in which no marked pixel has vanished.

    A scratch one pixel wide would be gone after nearest-neighbour sampling: a pixel of the result
    is marked if any pixel under it was.
    """
    import cv2

    if plane.shape == (height, width):
        return plane
    # Area averaging of 0 and 1 is positive exactly where something was marked.
    averaged = cv2.resize(plane.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
    return np.asarray(averaged > 0).view(np.uint8)


def draw_outlines(picture: NDArray[np.uint8], marked: Iterable[MarkedClass]) -> NDArray[np.uint8]:
    """Return a copy of (H, W, 3) ``picture`` with the outline of each class in its colour.

    The line runs just outside of the marked pixels, so that the defect itself stays visible.
    """
    import cv2

    # Visible on a screen, whatever the picture's size.
    thickness = max(1, round(max(picture.shape[:2]) / 800))
    kernel = np.ones((2 * thickness + 1, 2 * thickness + 1), np.uint8)
    drawn = picture.copy()
    for index, plane in marked:
        outline = np.ascontiguousarray(plane)
        ring = cv2.dilate(outline, kernel) > outline
        drawn[ring] = class_colour(index)
    return drawn
