"""The verdict at other thresholds than the chosen ones, by the rule that serving follows.

All classes' thresholds move together along the log-odds of the probability, so that the chosen
point is one of the rungs.  At each rung pixels are joined to regions and small ones are dropped
anew: a frame's verdict on the ladder is what `/predict` would say with these thresholds.

A region of a rung lies within a region of every lower rung.  What is reported, or found, at one is
so at all below: a frame or defect is described by how many rungs it reaches.  At the lowest rungs
one region may cover most of a frame and touch every defect, so that a defect also counts as
located, rung by rung, only if a region touches it of which some share is labelled.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from models import ClassThreshold
from training.connected_regions import Regions, occupied

# Log-odds relative to the chosen threshold: from 0.5 they reach to 0.0025 and to 0.9975.  Each rung
# costs a search for connected regions, so they stand closer where the choice is made.
_ABOVE = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
OFFSETS = (*(-offset for offset in reversed(_ABOVE)), 0.0, *_ABOVE)
CHOSEN_RUNG = OFFSETS.index(0.0)
# A region that is labelled for less than this points at no defect.
LEAST_LABELLED_SHARE = 0.1
# A logarithm needs odds that are neither zero nor infinite.
_MARGIN = 1e-7


@dataclass(frozen=True)
class Climb:
    """One class in one frame on the ladder.

    Attributes:
        reached: Rungs at which any region is reported, counted from the lowest.
        found_at: (R,) for each labelled region, rungs at which a reported region touches it.
        located: (len(OFFSETS),) labelled regions touched by a reported region of which at least
            `LEAST_LABELLED_SHARE` is labelled, by rung.
        false_regions: (len(OFFSETS),) reported regions that touch no labelled pixel, by rung.
    """

    reached: int
    found_at: NDArray[np.int64]
    located: NDArray[np.int64]
    false_regions: NDArray[np.int64]


def ladder_thresholds(chosen: float) -> tuple[float, ...]:
    """Return the threshold of each rung, rising; the middle one is the chosen one itself."""
    held = min(max(chosen, _MARGIN), 1 - _MARGIN)
    log_odds = math.log(held / (1 - held))
    return tuple(
        chosen if offset == 0 else 1 / (1 + math.exp(-(log_odds + offset))) for offset in OFFSETS
    )


def climb(scores: NDArray[np.float32], labels: Regions, chosen: ClassThreshold) -> Climb:
    """Join and match the regions of one class at every rung.

    Args:
        scores: (H, W) probabilities of the class.
        labels: The class's labelled regions in the frame.
        chosen: Its threshold and minimum area; the area stays as it is.
    """
    reached = 0
    found_at = np.zeros(len(labels.areas_px), np.int64)
    located = np.zeros(len(OFFSETS), np.int64)
    false_regions = np.zeros(len(OFFSETS), np.int64)
    rows, columns = np.divmod(labels.pixels, scores.shape[1])
    regions = labels.region_of_pixel
    for rung, threshold in enumerate(ladder_thresholds(chosen.threshold)):
        above = scores >= threshold
        kept_rows, kept_columns = occupied(above)
        if 2 * len(kept_rows) * len(kept_columns) < above.size:
            # Higher rungs lie within what is kept: the search narrows as it climbs.
            scores = scores[np.ix_(kept_rows, kept_columns)]
            above = above[np.ix_(kept_rows, kept_columns)]
            rows, in_rows = _places(rows, kept_rows)
            columns, in_columns = _places(columns, kept_columns)
            inside = in_rows & in_columns
            rows, columns, regions = rows[inside], columns[inside], regions[inside]
        if above.size == 0:
            break
        count, ids = cv2.connectedComponents(above.view(np.uint8), connectivity=8)
        areas_px = np.bincount(ids[above], minlength=count)
        reported = areas_px >= chosen.min_area_px
        reported[0] = False
        if not reported.any():
            break
        touching = ids[rows, columns]
        labelled_px = np.bincount(touching, minlength=count)
        points = reported & (labelled_px >= LEAST_LABELLED_SHARE * areas_px)
        reached = rung + 1
        found_at[regions[reported[touching]]] = rung + 1
        located[rung] = len(np.unique(regions[points[touching]]))
        false_regions[rung] = int(np.count_nonzero(reported & (labelled_px == 0)))
    return Climb(reached, found_at, located, false_regions)


def _places(
    places: NDArray[np.int64], kept: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return where each place lies among those kept, and whether it is kept at all."""
    if len(kept) == 0:
        return places, np.zeros(places.shape, np.bool_)
    found = np.searchsorted(kept, places).clip(0, len(kept) - 1)
    return found, np.equal(kept[found], places)
