"""Slow float64 references for scores over all thresholds: one threshold for each distinct score."""

import itertools

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

EIGHT_NEIGHBOURS = np.ones((3, 3), int)


def average_precision(scores: NDArray[np.floating], labelled: NDArray[np.bool_]) -> float:
    """Sum of (R_n - R_(n-1)) P_n over every distinct score, from the highest down."""
    total, recall_before = 0.0, 0.0
    for threshold in sorted(set(scores.tolist()), reverse=True):
        above = scores >= threshold
        true = int(np.sum(above & labelled))
        recall = true / int(labelled.sum())
        total += (recall - recall_before) * true / int(above.sum())
        recall_before = recall
    return total


def per_region_overlap_area(
    maps: list[tuple[NDArray[np.float32], NDArray[np.bool_]]], limit: float
) -> float:
    """Area under per-region overlap against false positive rate up to a limit, over the limit."""
    regions = []
    for scores, labelled in maps:
        ids, count = ndimage.label(labelled, EIGHT_NEIGHBOURS)
        regions += [scores[ids == number].astype(np.float64) for number in range(1, count + 1)]
    outside = np.concatenate([scores[~labelled] for scores, labelled in maps]).astype(np.float64)
    everything = np.concatenate([scores.ravel() for scores, _ in maps]).astype(np.float64)
    points = [(0.0, 0.0)]
    for threshold in sorted(set(everything.tolist()), reverse=True):
        false_rate = float(np.mean(outside >= threshold))
        points.append(
            (false_rate, float(np.mean([np.mean(region >= threshold) for region in regions])))
        )
    area = 0.0
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x0 >= limit or x1 == x0:
            continue
        end = min(x1, limit)
        y_end = y0 + (y1 - y0) * (end - x0) / (x1 - x0)
        area += (end - x0) * (y0 + y_end) / 2
    return area / limit


def rectangle_short_sides(y: NDArray[np.integer], x: NDArray[np.integer]) -> list[float]:
    """Shorter sides of all rectangles of least area around points, by trying every direction.

    The rectangle of least area has a side along an edge between two of the points; of several with
    one area any is right.
    """
    points = np.stack([x, y], axis=1).astype(np.float64)
    sides = []
    for first in points:
        for second in points:
            along = second - first
            length = float(np.hypot(*along))
            if length == 0:
                continue
            unit = along / length
            across = np.array([-unit[1], unit[0]])
            extents = [float(np.ptp(points @ direction)) for direction in (unit, across)]
            sides.append((extents[0] * extents[1], min(extents)))
    if not sides:
        return [0.0]
    least = min(area for area, _ in sides)
    return [short for area, short in sides if area <= least + 1e-3]
