"""Which labelled defects are found, and which reported regions are false.

A labelled defect is a connected region of a class's labelled pixels.  It counts as found if a
reported region of the class shares a pixel with it; a reported region that shares none is false.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from training.connected_regions import find_regions


@dataclass(frozen=True)
class RegionMatch:
    """One class in one frame.

    Attributes:
        found_by_px: For each labelled defect the area of the largest reported region that touches
            it, 0 if none does.
        false_px: Areas of the reported regions that touch no labelled defect.
    """

    found_by_px: tuple[int, ...]
    false_px: tuple[int, ...]


def match_regions(reported: NDArray[np.bool_], labelled: NDArray[np.bool_]) -> RegionMatch:
    """Match the connected regions of two maps (H, W)."""
    reported_count, reported_ids, stats, _ = cv2.connectedComponentsWithStats(
        reported.astype(np.uint8), connectivity=8
    )
    labelled_count, labelled_ids = cv2.connectedComponents(
        labelled.astype(np.uint8), connectivity=8
    )
    areas = stats[:, cv2.CC_STAT_AREA]
    shared = reported & labelled
    pairs = np.unique(np.stack([labelled_ids[shared], reported_ids[shared]]), axis=1)
    found_by_px = np.zeros(labelled_count, np.int64)
    np.maximum.at(found_by_px, pairs[0], areas[pairs[1]])
    touching = np.zeros(reported_count, np.bool_)
    touching[pairs[1]] = True
    return RegionMatch(
        found_by_px=tuple(int(area) for area in found_by_px[1:]),
        false_px=tuple(int(area) for area in areas[1:][~touching[1:]]),
    )


def best_min_area(matches: list[RegionMatch]) -> tuple[int, dict[str, float]]:
    """Return the minimum area with the highest F1 of defects found, and the counts behind it.

    Tried are the powers of two up to the largest region that found a defect.  Of equals the
    smallest wins: a defect that is not reported is worse than one too many.
    """
    labelled = sum(len(match.found_by_px) for match in matches)
    largest_px = max((area for match in matches for area in match.found_by_px), default=0)
    best: tuple[float, int, dict[str, float]] | None = None
    for exponent in range(max(largest_px, 1).bit_length()):
        min_area_px = 2**exponent
        found = sum(area >= min_area_px for match in matches for area in match.found_by_px)
        false = sum(area >= min_area_px for match in matches for area in match.false_px)
        score = 2 * found / (labelled + found + false) if labelled else 0.0
        evidence = {"labelled": labelled, "found": found, "false": false, "f1": score}
        if best is None or score > best[0]:
            best = (score, min_area_px, evidence)
    assert best is not None
    return best[1], best[2]


def drop_small_regions(reported: NDArray[np.bool_], min_area_px: int) -> NDArray[np.bool_]:
    """Return the map (H, W) without connected regions smaller than ``min_area_px``."""
    regions = find_regions(reported)
    return regions.keep(regions.areas_px >= min_area_px).draw(reported.shape)
