"""From probability maps to defects: connected regions above the operating point."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
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
    probabilities: NDArray[np.float32], classes: Sequence[str], point: OperatingPoint
) -> tuple[tuple[Defect, ...], list[str]]:
    """Return the defects of a frame, strongest first, and notes on what was left out.

    Args:
        probabilities: (K, H, W) float32.
        classes: K names.
        point: Threshold and minimum area of each class.

    Raises:
        OutputError: A probability is no number. It would lie above no threshold, and the frame
            would be called OK.
    """
    # The maximum of anything that holds a NaN is NaN, and is quicker than asking each.
    if probabilities.size and not math.isfinite(float(probabilities.max())):
        raise OutputError(
            "probabilities_not_finite",
            "the model's probabilities are no numbers, so there is no verdict",
            hint="roll the deployment back; the frame or the model's weights are out of range",
        )
    found: list[Defect] = []
    region_count = 0
    for class_map, name in zip(probabilities, classes, strict=True):
        regions, count = _regions(class_map, name, point.classes[name])
        found += regions
        region_count += count
    found.sort(key=lambda defect: -defect.score)
    notes = []
    if region_count > MAX_DEFECTS:
        notes.append(f"{region_count} defects found, the {MAX_DEFECTS} strongest are listed")
    return tuple(found[:MAX_DEFECTS]), notes


def _regions(
    class_map: NDArray[np.float32], name: str, threshold: ClassThreshold
) -> tuple[list[Defect], int]:
    above = (class_map >= threshold.threshold).view(np.uint8)
    # Most frames are good, and a defect is small: labelling the whole frame takes longer than all
    # else that is done with the probabilities.
    left, top, width, height = cv2.boundingRect(above)
    if width == 0:
        return [], 0
    class_map = class_map[top : top + height, left : left + width]
    binary = np.ascontiguousarray(above[top : top + height, left : left + width])
    count, labels, stats, _ = cv2.connectedComponentsWithStats(binary, connectivity=8)
    inside = np.flatnonzero(binary)
    peaks = np.zeros(count, np.float32)
    np.maximum.at(peaks, labels.ravel()[inside], class_map.ravel()[inside])
    large = np.flatnonzero(stats[1:, cv2.CC_STAT_AREA] >= threshold.min_area_px) + 1
    strongest = large[np.argsort(-peaks[large], kind="stable")][:MAX_DEFECTS]
    defects = []
    for index in strongest:
        x, y, width, height, area = (int(value) for value in stats[index])
        region = labels[y : y + height, x : x + width] == index
        defects.append(
            Defect(
                class_name=name,
                score=float(peaks[index]),
                box=(left + x, top + y, width, height),
                area_px=area,
                polygon=_outline(region, left + x, top + y),
            )
        )
    return defects, len(large)


def _outline(region: NDArray[np.bool_], x: int, y: int) -> tuple[tuple[int, int], ...]:
    contours, _ = cv2.findContours(
        region.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
    )
    outer = max(contours, key=len)
    points = cv2.approxPolyDP(outer, POLYGON_TOLERANCE_PX, closed=True)
    return tuple((int(px) + x, int(py) + y) for px, py in points[:, 0, :])
