"""Which part of a frame training sees: a window of native pixels, turned a little on demand.

Shapes: H rows, W columns, C channels, K planes of labels.
"""

import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from data.augmentation import CropSpec
from data.images import Pixels
from data.sampling import Wish

# cv2.warpAffine addresses pixels with 16-bit signed integers.
MOST_TURNED_PX = 32_766
# Linear interpolation reads one pixel beyond the place; the second is for rounding.
_MARGIN_PX = 2

Place = tuple[int, int]


def cut_window(
    pixels: Pixels,
    labels: Sequence[NDArray[Any]],
    crop: CropSpec | None,
    rng: np.random.Generator,
    *,
    wish: Wish = "any",
    rotation_deg: float = 0.0,
) -> tuple[Pixels, list[NDArray[Any]]]:
    """Cut a random window, and turn it half the time where turning is asked for.

    With the wish ``any`` a window of a defective frame lies around a labelled pixel with
    probability ``crop.defect_rate``; with ``defect`` always; with ``clean`` it is drawn from the
    windows with the fewest labelled pixels, which is none where the frame has such a window.  A
    labelled pixel is drawn uniformly from all of the frame's, and the window uniformly from those
    that contain it.

    A window is turned about that labelled pixel, else about its middle, and filled from the frame
    around it; only beyond the frame's edge it is filled by mirroring, pixels and labels alike.

    Args:
        pixels: (H, W, C), mirrored at the right and bottom where it is smaller than the window.
        labels: Arrays (H, W, K) of integers; the first is the mask.
        crop: The window; None for the whole frame.
        rng: Source of every choice.
        wish: What the window is to show.
        rotation_deg: Largest angle either way.

    Returns:
        Arrays of the window's size.  They are copies if there is a crop or a turn.
    """
    if crop is not None:
        pixels = _extend(pixels, crop.height_px, crop.width_px)
        labels = [_extend(array, crop.height_px, crop.width_px) for array in labels]
    corner, anchor = _choose_place(labels[0], crop, rng, wish)
    height, width = pixels.shape[:2] if crop is None else (crop.height_px, crop.width_px)
    angle_deg = 0.0
    if rotation_deg and rng.random() < 0.5:
        angle_deg = float(rng.uniform(-rotation_deg, rotation_deg))
    if angle_deg and max(pixels.shape[:2]) <= MOST_TURNED_PX:
        middle = (corner[0] + (height - 1) / 2, corner[1] + (width - 1) / 2)
        turn = _Turn(corner, (height, width), anchor or middle, angle_deg)
        turned = [turn.apply(array, nearest=True) for array in labels]
        if wish != "clean" or not turned[0].any():
            return turn.apply(pixels, nearest=False), turned
    if crop is None:
        return pixels, list(labels)
    window = (slice(corner[0], corner[0] + height), slice(corner[1], corner[1] + width))
    return pixels[window].copy(), [array[window].copy() for array in labels]


def _choose_place(
    mask: NDArray[Any], crop: CropSpec | None, rng: np.random.Generator, wish: Wish
) -> tuple[Place, Place | None]:
    """Return the window's upper left corner and the labelled pixel that it was put on, if any."""
    height, width = mask.shape[:2]
    if crop is None:
        return (0, 0), _labelled_pixel(mask, rng) if wish == "defect" else None
    if wish == "clean" and mask.any():
        return _emptiest_corner(mask, crop, rng), None
    tops = (0, height - crop.height_px)
    lefts = (0, width - crop.width_px)
    anchor = None
    if wish == "defect" or (wish == "any" and rng.random() < crop.defect_rate):
        anchor = _labelled_pixel(mask, rng)
    if anchor is not None:
        y, x = anchor
        tops = (max(0, y - crop.height_px + 1), min(y, tops[1]))
        lefts = (max(0, x - crop.width_px + 1), min(x, lefts[1]))
    top = int(rng.integers(tops[0], tops[1] + 1))
    left = int(rng.integers(lefts[0], lefts[1] + 1))
    return (top, left), anchor


def _labelled_pixel(mask: NDArray[Any], rng: np.random.Generator) -> Place | None:
    labelled = np.flatnonzero(mask.any(axis=2))
    if not labelled.size:
        return None
    y, x = divmod(int(labelled[rng.integers(labelled.size)]), mask.shape[1])
    return y, x


def _emptiest_corner(mask: NDArray[Any], crop: CropSpec, rng: np.random.Generator) -> Place:
    """Return a corner drawn uniformly from those whose window holds the fewest labelled pixels."""
    height, width = crop.height_px, crop.width_px
    sums = cv2.integral(mask.any(axis=2).astype(np.uint8))
    counts = sums[height:, width:] - sums[:-height, width:]
    counts -= sums[height:, :-width]
    counts += sums[:-height, :-width]
    emptiest = np.flatnonzero(counts == counts.min())
    top, left = divmod(int(emptiest[rng.integers(emptiest.size)]), counts.shape[1])
    return top, left


class _Turn:
    """Fills a window with the frame turned about a point.

    Args:
        corner: (y, x) of the window in the frame.
        size: Height and width of the window.
        pivot: (y, x) of the point that stays where it is.
        angle_deg: Counter-clockwise.
    """

    def __init__(
        self, corner: Place, size: tuple[int, int], pivot: tuple[float, float], angle_deg: float
    ) -> None:
        self._size = size
        cosine, sine = math.cos(math.radians(angle_deg)), math.sin(math.radians(angle_deg))
        turn = np.array([[cosine, -sine], [sine, cosine]])
        centre = np.array(pivot[::-1], np.float64)
        offset = turn @ (np.array(corner[::-1], np.float64) - centre) + centre
        # It maps a place (x, y) of the window to the place in the frame that its pixel comes from.
        self._matrix = np.column_stack([turn, offset])

    def apply(self, array: Any, *, nearest: bool) -> Any:
        """Return the turned window of (H, W, K), which is read only as far as it is needed."""
        height, width = self._size
        corners = np.array([[0, 0], [width, 0], [0, height], [width, height]], np.float64)
        places = corners @ self._matrix[:, :2].T + self._matrix[:, 2]
        low = np.floor(places.min(axis=0)).astype(int) - _MARGIN_PX
        high = np.ceil(places.max(axis=0)).astype(int) + _MARGIN_PX
        left, top = (int(value) for value in np.maximum(low, 0))
        right, bottom = (int(value) for value in np.minimum(high, array.shape[1::-1]))
        matrix = self._matrix.copy()
        matrix[:, 2] -= (left, top)
        interpolation = cv2.INTER_NEAREST if nearest else cv2.INTER_LINEAR
        # OpenCV takes four channels at most, and a label may have any number of classes.
        planes = [
            cv2.warpAffine(
                np.ascontiguousarray(array[top:bottom, left:right, plane]),
                matrix,
                (width, height),
                flags=interpolation | cv2.WARP_INVERSE_MAP,
                borderMode=cv2.BORDER_REFLECT,
            )
            for plane in range(array.shape[2])
        ]
        return np.stack(planes, axis=2)


def _extend(array: Any, height_px: int, width_px: int) -> Any:
    missing = [(0, max(0, height_px - array.shape[0])), (0, max(0, width_px - array.shape[1]))]
    if missing == [(0, 0), (0, 0)]:
        return array
    # Mirroring keeps the surface's texture, where a black border would look like a defect.
    return np.pad(array, [*missing, (0, 0)], mode="symmetric")
