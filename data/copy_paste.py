"""Copy-paste of defects: one labelled region of another training frame, blended into a window.

After Ghiasi et al., Simple Copy-Paste (arXiv 2012.07177), with a feathered seam, since on a metal
surface a hard one would be the easiest defect to learn.
"""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from data.images import Pixels

# The seam: from the defect's outline to this far outside of it the source fades out.
FEATHER_PX = 6
# Places that are tried before the window stays as it is.
_TRIES = 20


def paste_defect(
    pixels: Pixels,
    mask: NDArray[np.uint8],
    source_pixels: Pixels,
    source_mask: NDArray[np.uint8],
    rng: np.random.Generator,
) -> tuple[Pixels, NDArray[np.uint8], NDArray[np.bool_] | None]:
    """Paste one labelled region of a source frame at a random place where it fits whole.

    The region is drawn uniformly from those of the source that fit the window, keeps its class and
    its size, and is shifted to the brightness of the place it comes to.  It covers no labelled
    pixel of the window, its seam included; where no such place is found the window stays as it is.

    Args:
        pixels: (H, W, C) uint8 or uint16.
        mask: (H, W, K) uint8 of 0 and 1.
        source_pixels: (h, w, C) of the same dtype.
        source_mask: (h, w, K).
        rng: Source of every choice.

    Returns:
        New pixels and mask, and where the defect lies, (H, W) bool; or the window as it was and
        None.
    """
    region = _choose_region(source_mask, (mask.shape[0], mask.shape[1]), rng)
    if region is None:
        return pixels, mask, None
    rows, columns, defect = region
    source_planes = source_mask[rows, columns]
    opacity = _opacity(defect, source_planes)
    place = _choose_place(mask, opacity > 0, rng)
    if place is None:
        return pixels, mask, None
    target = (
        slice(place[0], place[0] + opacity.shape[0]),
        slice(place[1], place[1] + opacity.shape[1]),
    )
    pixels, mask = pixels.copy(), mask.copy()
    pixels[target] = _blend(pixels[target], source_pixels[rows, columns], opacity)
    mask[target] |= source_planes * defect[:, :, None]
    covered = np.zeros(mask.shape[:2], np.bool_)
    covered[target] = defect
    return pixels, mask, covered


def _choose_region(
    mask: NDArray[np.uint8], size: tuple[int, int], rng: np.random.Generator
) -> tuple[slice, slice, NDArray[np.bool_]] | None:
    """Return rows, columns and shape of a labelled region that fits ``size`` with its seam."""
    height, width = mask.shape[:2]
    found = []
    for plane in range(mask.shape[2]):
        if not mask[:, :, plane].any():
            continue
        _, regions, stats, _ = cv2.connectedComponentsWithStats(
            np.ascontiguousarray(mask[:, :, plane]), connectivity=8
        )
        for number, (left, top, columns, rows, _) in enumerate(stats[1:].tolist(), start=1):
            box = (
                slice(max(0, top - FEATHER_PX), min(height, top + rows + FEATHER_PX)),
                slice(max(0, left - FEATHER_PX), min(width, left + columns + FEATHER_PX)),
            )
            if box[0].stop - box[0].start <= size[0] and box[1].stop - box[1].start <= size[1]:
                found.append((box, regions[box] == number))
    if not found:
        return None
    (rows, columns), shape = found[int(rng.integers(len(found)))]
    return rows, columns, shape


def _opacity(defect: NDArray[np.bool_], planes: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return (h, w) float32: 1 on the defect, fading to 0 at `FEATHER_PX` from it."""
    outside = np.ascontiguousarray(~defect, dtype=np.uint8)
    distance_px = cv2.distanceTransform(outside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    opacity: Any = np.clip(1 - distance_px / np.float32(FEATHER_PX), 0, 1)
    # A neighbouring defect would come along without its label.
    opacity[planes.any(axis=2) & ~defect] = 0
    return np.asarray(opacity, np.float32)


def _choose_place(
    mask: NDArray[np.uint8], shape: NDArray[np.bool_], rng: np.random.Generator
) -> tuple[int, int] | None:
    labelled: NDArray[np.bool_] = np.asarray(mask.any(axis=2))
    height, width = shape.shape
    for _ in range(_TRIES):
        top = int(rng.integers(labelled.shape[0] - height + 1))
        left = int(rng.integers(labelled.shape[1] - width + 1))
        if not (labelled[top : top + height, left : left + width] & shape).any():
            return top, left
    return None


def _blend(target: Pixels, source: Pixels, opacity: NDArray[np.float32]) -> Any:
    """Return the source over the target, in the target's brightness and dtype."""
    weight = opacity[:, :, None]
    seam = (opacity > 0) & (opacity < 1)
    shift: Any = 0.0
    if seam.any():
        shift = np.median(target[seam], axis=0) - np.median(source[seam], axis=0)
    mixed = weight * (source + np.float32(shift)) + (1 - weight) * target
    top = np.iinfo(target.dtype).max
    # Outside the seam nothing may change, not even by rounding.
    return np.where(weight > 0, np.rint(np.clip(mixed, 0, top)), target).astype(target.dtype)
