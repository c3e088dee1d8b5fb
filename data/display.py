"""Frames and labels as a person sees them: 8 bits, class colours, outlines."""

import numpy as np
from numpy.typing import NDArray

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


def to_display(pixels: NDArray[np.uint8] | NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Return (H, W, 3) uint8 for a screen; 16 bits are stretched from darkest to brightest.

    A 12-bit camera's frame in 16 bits would be black without the stretch.
    """
    if pixels.dtype == np.uint16:
        low, high = int(pixels.min()), int(pixels.max())
        scaled = (pixels.astype(np.float32) - low) * (255 / max(high - low, 1))
        display = scaled.round().astype(np.uint8)
    else:
        display = pixels.astype(np.uint8, copy=False)
    return display if display.ndim == 3 else np.repeat(display[:, :, None], 3, axis=2)


def shrink_mask(planes: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """Return (height, width, K) planes in which no marked pixel has vanished.

    A scratch one pixel wide would be gone after nearest-neighbour sampling: a pixel of the result
    is marked if any pixel under it was.
    """
    import cv2

    if planes.shape[:2] == (height, width):
        return planes
    shrunk = [
        # Area averaging of 0 and 1 is positive exactly where something was marked.
        cv2.resize(plane.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA) > 0
        for plane in np.moveaxis(planes, 2, 0)
    ]
    return np.stack(shrunk, axis=2).astype(np.uint8)


def draw_outlines(picture: NDArray[np.uint8], planes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a copy of (H, W, 3) ``picture`` with the outline of each class in its colour.

    The line runs just outside of the marked pixels, so that the defect itself stays visible.
    """
    import cv2

    # Visible on a screen, whatever the picture's size.
    thickness = max(1, round(max(picture.shape[:2]) / 800))
    kernel = np.ones((2 * thickness + 1, 2 * thickness + 1), np.uint8)
    drawn = picture.copy()
    for index, plane in enumerate(np.moveaxis(planes, 2, 0)):
        marked = np.ascontiguousarray(plane)
        ring = cv2.dilate(marked, kernel) > marked
        drawn[ring] = class_colour(index)
    return drawn
