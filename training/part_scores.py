"""A part's score: the highest threshold at which one of its frames is still rejected.

A frame is rejected at a threshold if the pixels at or above it hold a connected region of at least
some area.  Raising the threshold only shrinks regions, so there is a highest one.  It is searched
for from above, where few pixels are left to look at.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from data import Frame
from models import OperatingPoint
from models.part_scores import AREAS_PX, STEPS, ScoredPart
from training.connected_regions import occupied


def area_scores(
    scores: NDArray[np.float32], areas_px: tuple[int, ...] = AREAS_PX
) -> tuple[int, ...]:
    """Return, for each area, the highest threshold that leaves a region of at least that area.

    Args:
        scores: (H, W) probabilities of a class.
        areas_px: Rising.

    Returns:
        Thresholds in thousandths; 0 where even the lowest leaves none.
    """
    largest = _LargestRegions(scores)
    at_least_px = _pixels_at_least(scores)
    found: list[int] = []
    for area_px in areas_px:
        # A larger region is left at no higher threshold, nor where there are fewer pixels.
        enough = int(np.flatnonzero(at_least_px >= area_px).max(initial=0))
        highest = min(enough, found[-1] if found else STEPS)
        found.append(_highest_step(largest, area_px, highest))
    return tuple(found)


def largest_region_px(scores: NDArray[np.float32], threshold: float) -> int:
    """Return the area of the largest region of pixels at or above a threshold."""
    above = scores >= np.float32(threshold)
    rows, columns = occupied(above)
    above = above[np.ix_(rows, columns)]
    if above.size == 0:
        return 0
    _, _, stats, _ = cv2.connectedComponentsWithStats(above.view(np.uint8), connectivity=8)
    areas = stats[1:, cv2.CC_STAT_AREA]
    return int(areas.max()) if len(areas) else 0


class _LargestRegions:
    """Remembers the largest region at each step that was asked for: areas share the search."""

    def __init__(self, scores: NDArray[np.float32]) -> None:
        self._scores = scores
        self._known: dict[int, int] = {}

    def area_px(self, step: int) -> int:
        if step not in self._known:
            self._known[step] = largest_region_px(self._scores, step / STEPS)
        return self._known[step]


def _pixels_at_least(scores: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return (STEPS + 1,) an upper bound of the pixels at or above each step."""
    steps = np.clip((scores * STEPS).astype(np.int32), 0, STEPS)
    counts = np.bincount(steps.ravel(), minlength=STEPS + 1)
    at_least = np.cumsum(counts[::-1])[::-1]
    # Rounding may put a pixel a step too low.
    return np.concatenate([at_least[:1], at_least[:-1]])


def _highest_step(largest: _LargestRegions, area_px: int, highest: int) -> int:
    """Return the highest step, at most ``highest``, with a region that large; 0 for none."""
    # In growing strides down to a step that has one, then by halving what lies above it.
    high, stride, low = highest, 1, highest
    while low > 0 and largest.area_px(low) < area_px:
        high = low - 1
        low = max(0, low - stride)
        stride *= 2
    while low < high:
        middle = (low + high + 1) // 2
        if largest.area_px(middle) >= area_px:
            low = middle
        else:
            high = middle - 1
    return low


@dataclass
class _Part:
    shows: set[str] = field(default_factory=set)
    is_defective: bool = False
    # Class to one score an area.
    scores: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    rejected_for: set[str] = field(default_factory=set)


class PartScorer:
    """Scores parts by class and minimum area; some numbers a part are kept.

    Args:
        classes: In the order of the probability maps.
        parts: The part of each frame by its name; a frame that is not in it is a part of its own.
        point: Where given, it is noted of which classes it reports a defect.
    """

    def __init__(
        self,
        classes: tuple[str, ...],
        parts: Mapping[str, str],
        point: OperatingPoint | None = None,
    ) -> None:
        self._classes = classes
        self._names = parts
        self._point = point
        self._parts: dict[str, _Part] = {}

    def add(self, frame: Frame, probabilities: NDArray[np.float32]) -> None:
        """Take in one frame and its probabilities (K, H, W)."""
        part = self._parts.setdefault(self._names.get(frame.name, frame.name), _Part())
        for index, name in enumerate(self._classes):
            scores = np.array(area_scores(probabilities[index]), np.int64)
            known = part.scores.get(name)
            part.scores[name] = scores if known is None else np.maximum(known, scores)
            if frame.mask[:, :, index].any():
                part.shows.add(name)
            if self._point is not None:
                chosen = self._point.classes[name]
                found_px = largest_region_px(probabilities[index], chosen.threshold)
                if found_px and found_px >= chosen.min_area_px:
                    part.rejected_for.add(name)
        part.is_defective |= bool(frame.mask.any())

    def parts(self) -> tuple[ScoredPart, ...]:
        """Return the parts in the order in which they came."""
        return tuple(
            ScoredPart(
                part=name,
                defective=part.is_defective,
                shows=tuple(each for each in self._classes if each in part.shows),
                scores={
                    each: tuple(int(score) for score in scores)
                    for each, scores in part.scores.items()
                },
                rejected_for=tuple(each for each in self._classes if each in part.rejected_for),
            )
            for name, part in self._parts.items()
        )
