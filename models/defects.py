"""From probability maps to defects: connected regions above the operating point."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from models.errors import OutputError

Verdict = Literal["OK", "NG"]

# A model without a usable threshold can report a region a pixel; a line needs no more than these to
# know that the part, or the model, is bad.
MAX_DEFECTS = 1000
# Contours are simplified until no point is further than this from the true one.
POLYGON_TOLERANCE_PX = 1.0
# A frame of 2500x2000 has twenty thousand of them, which are labelled in no time.
BLOCK_PX = 16
# With so many separate parts a frame is labelled as quickly whole.
_MOST_PARTS = 200


class ClassThreshold(BaseModel):
    """Where one class begins to count as a defect, and on what evidence.

    Attributes:
        threshold: Pixels of at least this probability belong to a region.
        min_area_px: Smaller regions are not reported.
        basis: ``calibration`` if it was chosen on calibration frames, ``default`` if those could
            not support a choice; ``reason`` then says why.
        reason: Why the threshold is a default.
        evidence: Counts and scores the choice rests on.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    threshold: float = 0.5
    min_area_px: int = 1
    basis: Literal["calibration", "default"] = "default"
    reason: str | None = None
    evidence: dict[str, Any] = {}


class OperatingPoint(BaseModel):
    """One threshold and minimum area a class, in the order of the model's classes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    classes: dict[str, ClassThreshold]


@dataclass(frozen=True)
class Defect:
    """One connected region of one class.

    Attributes:
        class_name: The defect's class.
        score: Highest probability in the region, 0 to 1.
        box: (x, y, width, height) in pixels of the frame.
        area_px: Number of pixels.
        polygon: Outer contour as (x, y) points, simplified to within a pixel.
    """

    class_name: str
    score: float
    box: tuple[int, int, int, int]
    area_px: int
    polygon: tuple[tuple[int, int], ...]


def find_defects(
    probabilities: NDArray[np.float32],
    classes: Sequence[str],
    point: OperatingPoint,
    peaks: NDArray[np.float32] | None = None,
) -> tuple[tuple[Defect, ...], list[str]]:
    """Return the defects of a frame, strongest first, and notes on what was left out.

    Args:
        probabilities: (K, H, W) float32.
        classes: K names.
        point: Threshold and minimum area of each class.
        peaks: (K, H // `BLOCK_PX`, W // `BLOCK_PX`), the highest probability of each whole block
            where a device has found it already.

    Raises:
        OutputError: A probability is no number. It would lie above no threshold, and the frame
            would be called OK.
    """
    # Each probability is read once here; after that only those of blocks above a threshold are.
    maxima = _block_maxima(probabilities, peaks)
    # The maximum of anything that holds a NaN is NaN, and is quicker than asking each.
    if maxima.size and not math.isfinite(float(maxima.max())):
        raise OutputError(
            "probabilities_not_finite",
            "the model's probabilities are no numbers, so there is no verdict",
            hint="roll the deployment back; the frame or the model's weights are out of range",
        )
    found: list[Defect] = []
    region_count = 0
    for class_map, blocks, name in zip(probabilities, maxima, classes, strict=True):
        regions, count = _regions(class_map, blocks, name, point.classes[name])
        found += regions
        region_count += count
    found.sort(key=lambda defect: -defect.score)
    notes = []
    if region_count > MAX_DEFECTS:
        notes.append(f"{region_count} defects found, the {MAX_DEFECTS} strongest are listed")
    return tuple(found[:MAX_DEFECTS]), notes


@dataclass(frozen=True)
class _Region:
    """A connected region, and the part of the frame that it was found in.

    Attributes:
        score: Highest probability in it.
        box: (x, y, width, height) in pixels of the frame.
        area_px: Number of pixels.
        labels: Of the part of the frame.
        label: Of the region in it.
        corner: (x, y) of that part in the frame.
    """

    score: float
    box: tuple[int, int, int, int]
    area_px: int
    labels: NDArray[np.int32]
    label: int
    corner: tuple[int, int]

    def outline(self) -> tuple[tuple[int, int], ...]:
        """Return its outer contour in pixels of the frame."""
        (left, top), (x, y, width, height) = self.corner, self.box
        inside = self.labels[y - top : y - top + height, x - left : x - left + width] == self.label
        return _outline(inside, x, y)


def _regions(
    class_map: NDArray[np.float32],
    blocks: NDArray[np.float32],
    name: str,
    threshold: ClassThreshold,
) -> tuple[list[Defect], int]:
    regions: list[_Region] = []
    for part, corner, peak in _parts_above(class_map, blocks, threshold.threshold):
        regions += _label(part, class_map, corner, peak, threshold.min_area_px)
    regions.sort(key=lambda region: -region.score)
    defects = [
        Defect(
            class_name=name,
            score=region.score,
            box=region.box,
            area_px=region.area_px,
            polygon=region.outline(),
        )
        for region in regions[:MAX_DEFECTS]
    ]
    return defects, len(regions)


def _block_maxima(
    probabilities: NDArray[np.float32], peaks: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Return the highest of each class's probabilities in each block of a frame.

    Args:
        probabilities: (K, H, W).
        peaks: Those of the whole blocks, if they are known.

    Returns:
        (K, rows, columns) of blocks; those at the right and at the bottom may be smaller.
    """
    rows, columns = (side // BLOCK_PX for side in probabilities.shape[1:])
    bottom, right = rows * BLOCK_PX, columns * BLOCK_PX
    maxima = _whole_block_maxima(probabilities, rows, columns) if peaks is None else peaks
    if right < probabilities.shape[2]:
        beside = probabilities[:, :bottom, right:]
        blocks = beside.reshape(len(maxima), rows, BLOCK_PX, beside.shape[2])
        maxima = np.concatenate((maxima, blocks.max(axis=(2, 3))[:, :, None]), axis=2)
    if bottom < probabilities.shape[1] and probabilities.shape[2]:
        starts = np.arange(0, probabilities.shape[2], BLOCK_PX)
        below = probabilities[:, bottom:].max(axis=1, keepdims=True)
        maxima = np.concatenate((maxima, np.maximum.reduceat(below, starts, axis=2)), axis=1)
    return maxima


@torch.inference_mode()
def _whole_block_maxima(
    probabilities: NDArray[np.float32], rows: int, columns: int
) -> NDArray[np.float32]:
    """Return the highest of each whole block, (K, rows, columns); torch reads on all cores."""
    within = probabilities[:, : rows * BLOCK_PX]
    # Torch warns of arrays that it must not write to.
    within = within if within.flags.writeable else within.copy()
    count, _, width = within.shape
    bands = torch.from_numpy(within).view(count, rows, BLOCK_PX, width).amax(2)
    whole = bands[:, :, : columns * BLOCK_PX]
    maxima: NDArray[np.float32] = whole.view(count, rows, columns, BLOCK_PX).amax(3).numpy()
    return maxima


def _parts_above(
    class_map: NDArray[np.float32], blocks: NDArray[np.float32], threshold: float
) -> Iterator[tuple[NDArray[np.uint8], tuple[int, int], float]]:
    """Yield masks of what lies above a threshold, their (x, y) corners and highest probabilities.

    Each region lies in one of them, whole.  A defect is small, and labelling a whole frame takes
    longer than all else that is done with its probabilities.  So blocks that reach the threshold
    are labelled first: pixels that touch lie in one block, or in two that touch.
    """
    reaching = (blocks >= threshold).view(np.uint8)
    if not reaching.any():
        return
    count, labels, stats, _ = cv2.connectedComponentsWithStats(reaching, connectivity=8)
    if count > _MOST_PARTS:
        yield (class_map >= threshold).view(np.uint8), (0, 0), float(blocks.max())
        return
    for label in range(1, count):
        x, y, columns, rows, _ = (int(value) for value in stats[label])
        left, top = x * BLOCK_PX, y * BLOCK_PX
        right, bottom = left + columns * BLOCK_PX, top + rows * BLOCK_PX
        part = class_map[top:bottom, left:right] >= threshold
        own = labels[y : y + rows, x : x + columns] == label
        if not own.all():
            # Blocks of others lie in the box of these.
            pixels = own.repeat(BLOCK_PX, axis=0).repeat(BLOCK_PX, axis=1)
            part &= pixels[: part.shape[0], : part.shape[1]]
        peak = float(blocks[y : y + rows, x : x + columns][own].max())
        yield part.view(np.uint8), (left, top), peak


def _label(
    part: NDArray[np.uint8],
    class_map: NDArray[np.float32],
    corner: tuple[int, int],
    peak: float,
    min_area_px: int,
) -> list[_Region]:
    """Return the regions of a part of a frame that are large enough.

    Args:
        part: (h, w), 1 where the threshold is reached.
        class_map: (H, W) of the frame.
        corner: (x, y) of the part in the frame.
        peak: The highest probability in the part.
        min_area_px: Of a region.
    """
    count, labels, stats, _ = cv2.connectedComponentsWithStats(part, connectivity=8)
    left, top = corner
    regions = []
    for label, (x, y, width, height, area_px) in enumerate(stats.tolist()):
        # The first label is of all that lies below the threshold.
        if label == 0 or area_px < min_area_px:
            continue
        score = peak
        if count > 2:
            inside = labels[y : y + height, x : x + width] == label
            around = class_map[top + y : top + y + height, left + x : left + x + width]
            score = float(around[inside].max())
        box = (left + x, top + y, width, height)
        regions.append(_Region(score, box, area_px, labels, label, corner))
    return regions


def _outline(region: NDArray[np.bool_], x: int, y: int) -> tuple[tuple[int, int], ...]:
    contours, _ = cv2.findContours(
        region.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
    )
    outer = max(contours, key=len)
    points = cv2.approxPolyDP(outer, POLYGON_TOLERANCE_PX, closed=True)
    # Thousands of points are moved and turned into Python's numbers in one call each.
    return tuple(map(tuple, (points[:, 0, :] + (x, y)).tolist()))
