"""From probability maps to defects: connected regions above the operating point."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from models.errors import OutputError

Verdict = Literal["OK", "NG"]

# A model without a usable threshold can report a region a pixel; a line needs no more than these to
# know that the part, or the model, is bad.
MAX_DEFECTS = 1000
# Contours are simplified until no point is further than this from the true one.
POLYGON_TOLERANCE_PX = 1.0
# A device that holds the probabilities tells the highest one of each such square beside them.
BLOCK_PX = 16
# To begin anew takes about as long as to look at so many rows that hold nothing.
_GAP_ROWS = 10
# Tracing takes time by the square of their number, and labelling does not: noise is labelled.
_MOST_BORDERS = 30_000
_SAMPLED_ROWS = 8


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
    # Each probability is read once here; after that only those of rows above a threshold are.
    maxima = _row_maxima(probabilities, peaks)
    # The maximum of anything that holds a NaN is NaN, and is quicker than asking each.
    if maxima.size and not math.isfinite(float(maxima.max())):
        raise OutputError(
            "probabilities_not_finite",
            "the model's probabilities are no numbers, so there is no verdict",
            hint="roll the deployment back; the frame or the model's weights are out of range",
        )
    found: list[Defect] = []
    region_count = 0
    for class_map, highest, name in zip(probabilities, maxima, classes, strict=True):
        regions = _regions(class_map, highest, point.classes[name])
        found += [region.as_defect(name) for region in regions[:MAX_DEFECTS]]
        region_count += len(regions)
    found.sort(key=lambda defect: -defect.score)
    notes = []
    if region_count > MAX_DEFECTS:
        notes.append(f"{region_count} defects found, the {MAX_DEFECTS} strongest are listed")
    return tuple(found[:MAX_DEFECTS]), notes


@dataclass(frozen=True)
class _Region:
    """A connected region of one class.

    Attributes:
        score: Highest probability in it.
        box: (x, y, width, height) in pixels of the frame.
        area_px: Number of pixels.
        border: Returns its outer border, pixel by pixel in the frame, as OpenCV traces it.
    """

    score: float
    box: tuple[int, int, int, int]
    area_px: int
    border: Callable[[], NDArray[np.int32]]

    def as_defect(self, class_name: str) -> Defect:
        """Return what is reported of it."""
        points = cv2.approxPolyDP(self.border(), POLYGON_TOLERANCE_PX, closed=True)
        # Thousands of points are turned into Python's numbers in one call.
        polygon = tuple(map(tuple, points[:, 0, :].tolist()))
        return Defect(class_name, self.score, self.box, self.area_px, polygon)


def _row_maxima(
    probabilities: NDArray[np.float32], peaks: NDArray[np.float32] | None
) -> NDArray[np.float32]:
    """Return what no probability of a row exceeds, by class and row.

    One thread reads about as fast as memory delivers, and waits for no other.

    Args:
        probabilities: (K, H, W).
        peaks: Those of the whole blocks, if they are known.

    Returns:
        (K, H); the highest probability of the row, or, by peaks, of the blocks that it crosses.
    """
    if peaks is None:
        maxima: NDArray[np.float32] = np.maximum.reduce(probabilities, axis=2)
        return maxima
    bottom, right = (count * BLOCK_PX for count in peaks.shape[1:])
    of_blocks = peaks.max(axis=2, initial=0.0).repeat(BLOCK_PX, axis=1)
    # Blocks that are not whole have no peak.
    beside = probabilities[:, :bottom, right:].max(axis=2, initial=0.0)
    below = probabilities[:, bottom:].max(axis=2)
    return np.concatenate((np.maximum(of_blocks, beside), below), axis=1)


def _regions(
    class_map: NDArray[np.float32], highest: NDArray[np.float32], threshold: ClassThreshold
) -> list[_Region]:
    """Return a class's regions that are large enough, strongest first.

    Args:
        class_map: (H, W).
        highest: (H,), what no probability of a row exceeds.
        threshold: The class's.
    """
    regions: list[_Region] = []
    for top, bottom in _runs(highest >= threshold.threshold):
        above = (class_map[top:bottom] >= threshold.threshold).view(np.uint8)
        if cv2.countNonZero(above) < threshold.min_area_px:
            continue
        find = _traced if _is_traceable(above) else _labelled
        regions += find(class_map[top:bottom], above, top, threshold.min_area_px)
    regions.sort(key=lambda region: -region.score)
    return regions


def _runs(reaching: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Return where runs of rows that reach a threshold begin and end; no region crosses their ends.

    Each is looked at by itself: a mask of a whole frame is memory that the system has to provide
    anew for each frame, which takes longer than all that is done with it.
    """
    rows = np.flatnonzero(reaching)
    if not rows.size:
        return []
    gaps = np.flatnonzero(np.diff(rows) > _GAP_ROWS)
    begins, ends = rows[np.append(0, gaps + 1)], rows[np.append(gaps, -1)] + 1
    return list(zip(begins.tolist(), ends.tolist(), strict=True))


def _is_traceable(above: NDArray[np.uint8]) -> bool:
    """Return whether a mask has few enough borders to be traced; noise alone has more."""
    if above.size <= _MOST_BORDERS:
        return True
    sampled = above[::_SAMPLED_ROWS]
    # A border begins and ends in a row.
    crossings = np.count_nonzero(sampled[:, 1:] != sampled[:, :-1])
    return int(crossings) * _SAMPLED_ROWS <= 2 * _MOST_BORDERS


def _traced(
    rows: NDArray[np.float32], above: NDArray[np.uint8], top: int, min_area_px: int
) -> list[_Region]:
    """Return the regions among some rows of a class's map, by their borders.

    That takes a tenth of the time of labelling pixels where few lie above the threshold, and yields
    outlines and areas as well.

    Args:
        rows: (h, W) probabilities.
        above: (h, W), 1 where they reach the threshold.
        top: The frame's row that they begin with.
        min_area_px: Of a region.
    """
    # In two levels: each region's outer border, and the borders of its holes.
    borders, hierarchy = cv2.findContours(above, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    links = hierarchy[0].tolist()
    regions = []
    for outer, (_, _, first_hole, parent) in zip(borders, links, strict=True):
        # Most of what a model sees is specks, which one look at their border rules out.
        steps = len(outer)
        if parent >= 0 or _most_enclosed_px(steps) < min_area_px:
            continue
        holes, hole = [], first_hole
        while hole >= 0:
            holes.append(borders[hole])
            hole = links[hole][0]
        area_px = _enclosed_px(outer) - sum(_hole_px(border) for border in holes)
        if area_px >= min_area_px:
            x, y, width, height = box = cv2.boundingRect(outer)
            score = _highest_inside(rows, above, box, area_px, [outer, *holes])
            moved = partial(np.add, outer, np.array((0, top), np.int32))
            regions.append(_Region(score, (x, top + y, width, height), area_px, moved))
    return regions


def _labelled(
    rows: NDArray[np.float32], above: NDArray[np.uint8], top: int, min_area_px: int
) -> list[_Region]:
    """Return what `_traced` does, by the label of each pixel."""
    # No more of them have room apart from each other.  Where 16 bits can number them, OpenCV takes
    # half the time.
    most = ((above.shape[0] + 1) // 2) * ((above.shape[1] + 1) // 2)
    kind = cv2.CV_16U if most < 2**16 else cv2.CV_32S
    count, found, stats, _ = cv2.connectedComponentsWithStats(above, connectivity=8, ltype=kind)
    labels, inside = np.asarray(found), above.view(np.bool_)
    highest = np.full(count, -np.inf, np.float32)
    np.maximum.at(highest, labels[inside], rows[inside])
    scores = highest.tolist()
    regions = []
    for label, (x, y, width, height, area_px) in enumerate(np.asarray(stats).tolist()):
        # The first label is of all that lies below the threshold.
        if label == 0 or area_px < min_area_px:
            continue
        place = slice(y, y + height), slice(x, x + width)
        border = partial(_border_of_label, labels, label, place, top)
        regions.append(_Region(scores[label], (x, top + y, width, height), area_px, border))
    return regions


def _border_of_label(
    labels: NDArray[Any], label: int, place: tuple[slice, slice], top: int
) -> NDArray[np.int32]:
    """Return the outer border of a labelled region, in pixels of the frame."""
    inside = (labels[place] == label).view(np.uint8)
    corner = (place[1].start, top + place[0].start)
    borders, _ = cv2.findContours(inside, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE, offset=corner)
    return np.asarray(borders[0], np.int32)


def _most_enclosed_px(steps: int) -> float:
    """Return how many pixels a closed path of single steps encloses at most, its own included.

    The largest area is that of a diamond, whose sides are diagonal steps.
    """
    return steps**2 / 8 + steps / 2 + 1


def _enclosed_px(border: NDArray[np.int32]) -> int:
    """Return how many pixels an outer border encloses, its own included: Pick's theorem.

    The area of the polygon through the pixels' centres is the number of pixels inside, and half of
    those on it, less one.  A border that goes there and back along a line counts twice and encloses
    nothing, which the theorem allows for.
    """
    # A single pixel is a path of no step, and not of one.
    return int(cv2.contourArea(border) + len(border) / 2 + 1)


def _hole_px(border: NDArray[np.int32]) -> int:
    """Return how many pixels the border of a hole encloses, which is none of them: see above."""
    return int(cv2.contourArea(border) - len(border) / 2 + 1)


def _highest_inside(
    rows: NDArray[np.float32],
    above: NDArray[np.uint8],
    box: Sequence[int],
    area_px: int,
    borders: Sequence[NDArray[np.int32]],
) -> float:
    """Return the highest probability in a region.

    Args:
        rows: (h, W) probabilities.
        above: (h, W), 1 where they reach the threshold.
        box: (x, y, width, height) of the region in them.
        area_px: Of the region.
        borders: Of the region and its holes.
    """
    x, y, width, height = box
    around = rows[y : y + height, x : x + width]
    if cv2.countNonZero(above[y : y + height, x : x + width]) == area_px:
        # Whatever else lies in the box is below the threshold.
        return cv2.minMaxLoc(around)[1]
    inside = np.zeros((height, width), np.uint8)
    cv2.drawContours(inside, borders, -1, 1, cv2.FILLED, offset=(-x, -y))
    return cv2.minMaxLoc(around, inside)[1]
