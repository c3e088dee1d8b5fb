"""Whether labels can be meant as they are drawn."""

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from data.health.findings import Example, Finding, finding
from data.items import Item
from data.labels import Box, BoxLabels, Polygon, labelled_defects, shapes
from data.manifest import Manifest

# A label over more of the frame marks the part, not a defect of it.
_MOST_OF_FRAME = 0.5
# Two labels that share this part of what they cover together mark one thing.
_SAME_THING = 0.5
# Overlaps are counted on a raster of this many steps a side at most.
_RASTER_STEPS = 512
# Tools write 99.99999 for 100.
_OUTSIDE_TOLERANCE_PX = 0.01

Sides = tuple[float, float, float, float]


def check_sizes(manifest: Manifest, stride_px: int) -> Iterator[Finding]:
    """Look for labels without an area, of a pixel, below the stride, or over half the frame."""
    found: defaultdict[str | None, list[Example]] = defaultdict(list)
    for item in manifest.items:
        for name, area_px in labelled_defects(item.labels, manifest.classes):
            example = Example(f"{item.name} ({name})", (item.name,))
            found[_odd_size(area_px, item, stride_px)].append(example)
    if empty := found["empty"]:
        yield finding(
            "empty_labels",
            "warning",
            "Some labels enclose nothing: their points lie on one line, or there is only one.",
            empty,
            "Delete them, or draw the defects they stand for.",
        )
    if points := found["point"]:
        yield finding(
            "single_pixel_labels",
            "warning",
            "Some labels cover a pixel at the most, as a slip of the hand does.",
            points,
            "Delete them, or draw the defects they stand for.",
        )
    if small := found["small"]:
        yield finding(
            "defects_below_stride",
            "warning",
            f"Some defects are smaller than {stride_px} px, the stride of the network's features.",
            small,
            "Take the frames at a higher magnification, or choose a network with a finer stride.",
        )
    if huge := found["huge"]:
        yield finding(
            "labels_over_half_the_frame",
            "warning",
            "Some labels cover more than half of their frame.",
            huge,
            "Check whether the background was labelled, or the mask is inverted.",
        )


def _odd_size(area_px: float | None, item: Item, stride_px: int) -> str | None:
    if area_px is None:
        return None
    if area_px <= 0:
        return "empty"
    if area_px <= 1:
        return "point"
    if math.sqrt(area_px) < stride_px:
        return "small"
    return "huge" if area_px > _MOST_OF_FRAME * item.width * item.height else None


def check_boxes(manifest: Manifest) -> Iterator[Finding]:
    """Look for boxes where outlines are learned."""
    boxed = [
        Example(item.name, (item.name,))
        for item in manifest.items
        if isinstance(item.labels, BoxLabels)
    ]
    if boxed and manifest.task == "segmentation":
        yield finding(
            "boxes_for_segmentation",
            "warning",
            "Some frames are labelled by boxes, and segmentation learns the whole of a box.",
            boxed,
            "Draw outlines; or train a detector, in a data set made for detection.",
        )


def check_outside(manifest: Manifest) -> Iterator[Finding]:
    """Look for labels that reach out of their frame; uploads refuse them, old manifests may not."""
    outside = [
        Example(f"{item.name} ({shape.class_name})", (item.name,))
        for item in manifest.items
        for shape in shapes(item.labels)
        if _reaches_out(_sides(shape), item)
    ]
    if outside:
        yield finding(
            "labels_outside_frame",
            "error",
            "Some labels reach out of their frame, so they belong to another picture.",
            outside,
            "Upload the pictures that were labelled, or the labels of these pictures.",
        )


def check_overlaps(manifest: Manifest) -> Iterator[Finding]:
    """Look for labels that mark one thing twice."""
    twice = [
        Example(f"{item.name} ({one.class_name}, {other.class_name})", (item.name,))
        for item in manifest.items
        for one, other in _overlapping(shapes(item.labels))
    ]
    if twice:
        yield finding(
            "labels_overlap",
            "warning",
            "Some labels share most of what they cover: one defect is labelled twice.",
            twice,
            "Keep the right one of the two.",
        )


def _sides(shape: Polygon | Box) -> Sides:
    """Return left, top, right and bottom."""
    if isinstance(shape, Box):
        return shape.x, shape.y, shape.x + shape.width, shape.y + shape.height
    columns, rows = zip(*shape.points, strict=True)
    return min(columns), min(rows), max(columns), max(rows)


def _reaches_out(sides: Sides, item: Item) -> bool:
    left, top, right, bottom = sides
    lowest, tolerance = -_OUTSIDE_TOLERANCE_PX, _OUTSIDE_TOLERANCE_PX
    return (
        left < lowest
        or top < lowest
        or right > item.width + tolerance
        or bottom > item.height + tolerance
    )


def _overlapping(
    labels: tuple[Polygon, ...] | tuple[Box, ...],
) -> Iterator[tuple[Polygon | Box, Polygon | Box]]:
    sides = [_sides(label) for label in labels]
    for one, other in itertools.combinations(range(len(labels)), 2):
        # Few pairs come near each other; only those are drawn.
        if _box_overlap(sides[one], sides[other]) <= _SAME_THING / 2:
            continue
        if _overlap(labels[one], labels[other], sides[one], sides[other]) > _SAME_THING:
            yield labels[one], labels[other]


def _box_overlap(one: Sides, other: Sides) -> float:
    """Return the intersection of two upright boxes over their union."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return width * height / (areas - width * height)


def _overlap(one: Polygon | Box, other: Polygon | Box, *sides: Sides) -> float:
    """Return the intersection of two labels over their union."""
    if isinstance(one, Box) or isinstance(other, Box):
        return _box_overlap(*sides)
    import cv2

    corners = np.asarray(sides)
    origin, end = corners[:, :2].min(axis=0), corners[:, 2:].max(axis=0)
    steps = _RASTER_STEPS / max(float((end - origin).max()), 1.0)
    planes = np.zeros((2, _RASTER_STEPS + 1, _RASTER_STEPS + 1), np.uint8)
    for plane, polygon in zip(planes, (one, other), strict=True):
        points = (np.asarray(polygon.points) - origin) * steps
        cv2.fillPoly(plane, [np.rint(points).astype(np.int32)], color=1)
    both, either = (planes[0] & planes[1]).sum(), (planes[0] | planes[1]).sum()
    return float(both / either)
