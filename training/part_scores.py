"""A part's score: the highest threshold at which one of its frames is still rejected.

A frame is rejected at a threshold if the pixels at or above it hold a connected region of at least
some area.  Raising the threshold only shrinks regions, so there is a highest one, and it is found
by halving a grid.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from data import Frame
from models.certificate import Candidate
from training.connected_regions import occupied
from training.evaluation import ProbabilityModel
from training.metrics import BIN_COUNT

# Thresholds are multiples of this, as those chosen by Dice are.
STEP = 1 / BIN_COUNT
# Fixed beforehand and not taken from the data: the certificate's confidence counts on it.
AREAS_PX = (1, 4, 16, 64, 256)


def area_scores(
    scores: NDArray[np.float32], areas_px: tuple[int, ...] = AREAS_PX
) -> tuple[float, ...]:
    """Return, for each area, the highest threshold that leaves a region of at least that area.

    Args:
        scores: (H, W) probabilities of a class.
        areas_px: Rising.

    Returns:
        Multiples of `STEP`; 0 where even the lowest leaves none.
    """
    found = []
    highest = BIN_COUNT
    for area_px in areas_px:
        low, high = 0, highest
        while low < high:
            middle = (low + high + 1) // 2
            if _largest_region_px(scores, middle * STEP) >= area_px:
                low = middle
            else:
                high = middle - 1
        # A larger region is left at no higher threshold.
        highest = low
        found.append(low * STEP)
    return tuple(found)


def _largest_region_px(scores: NDArray[np.float32], threshold: float) -> int:
    above = scores >= np.float32(threshold)
    rows, columns = occupied(above)
    above = above[np.ix_(rows, columns)]
    if above.size == 0:
        return 0
    _, _, stats, _ = cv2.connectedComponentsWithStats(above.view(np.uint8), connectivity=8)
    areas = stats[1:, cv2.CC_STAT_AREA]
    return int(areas.max()) if len(areas) else 0


@dataclass
class _Part:
    shows: set[str] = field(default_factory=set)
    is_defective: bool = False
    # Class to one score an area.
    scores: dict[str, NDArray[np.float64]] = field(default_factory=dict)


class PartScores:
    """The scores of calibration parts by class and minimum area; some numbers a part are kept.

    Args:
        classes: In the order of the probability maps.
        parts: The part of each frame by its name; a frame that is not in it is a part of its own.
    """

    def __init__(self, classes: tuple[str, ...], parts: Mapping[str, str]) -> None:
        self._classes = classes
        self._names = parts
        self._parts: dict[str, _Part] = {}

    def add(self, frame: Frame, probabilities: NDArray[np.float32]) -> None:
        """Take in one frame and its probabilities (K, H, W)."""
        part = self._parts.setdefault(self._names.get(frame.name, frame.name), _Part())
        for index, name in enumerate(self._classes):
            scores = np.array(area_scores(probabilities[index]), np.float64)
            known = part.scores.get(name)
            part.scores[name] = scores if known is None else np.maximum(known, scores)
            if frame.mask[:, :, index].any():
                part.shows.add(name)
        part.is_defective |= bool(frame.mask.any())

    def candidates(self, name: str) -> list[Candidate]:
        """Return the scores of parts that show a class, and of good parts, for each area."""
        parts = self._parts.values()
        defective = [part.scores[name] for part in parts if name in part.shows]
        good = [part.scores[name] for part in parts if not part.is_defective]
        shape = (-1, len(AREAS_PX))
        by_area = (np.array(scores, np.float64).reshape(shape).T for scores in (defective, good))
        return [Candidate(bad, fine) for bad, fine in zip(*by_area, strict=True)]


def score_parts(
    model: ProbabilityModel,
    frames: Iterable[Frame],
    classes: tuple[str, ...],
    parts: Mapping[str, str],
) -> PartScores:
    """Ask a model about frames, one at a time, and return their parts' scores."""
    scored = PartScores(classes, parts)
    for frame in frames:
        scored.add(frame, model.probabilities(frame.pixels))
    return scored
