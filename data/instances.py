"""One defect after the other: what detection needs to know after a frame was varied.

The defects of a frame are drawn as numbers into planes that go through the same cuts, turns and
mirrors as its mask; boxes are read off those planes afterwards, so that they agree with mask and
pixels whatever was done.

Shapes: H rows, W columns, L layers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from data.labels import AnyLabels, BoxLabels, MaskLabels, PolygonLabels, rasterize, shapes

Place = tuple[slice, slice]


@dataclass(frozen=True)
class VisibleBox:
    """A defect as far as it is to be seen, in whole pixels of the varied frame.

    Attributes:
        class_name: The defect's.
        x: Leftmost pixel.
        y: Uppermost pixel.
        width: Pixels, at least 1.
        height: Pixels, at least 1.
        visible_share: Its pixels as a share of the whole defect's in the original frame; at most 1.
    """

    class_name: str
    x: int
    y: int
    width: int
    height: int
    visible_share: float


@dataclass(frozen=True)
class Instances:
    """The defects of one frame.

    Attributes:
        layers: (H, W, L) uint16: number of the defect at each pixel, from 1; 0 is none.  Defects
            that overlap lie on different layers.
        class_names: Of each defect; the first belongs to number 1.
        areas_px: Of each defect, in the frame as it was labelled.
    """

    layers: NDArray[np.uint16]
    class_names: tuple[str, ...]
    areas_px: tuple[int, ...]

    def with_layers(self, layers: NDArray[np.uint16]) -> "Instances":
        """Return the same defects at other places."""
        return replace(self, layers=layers)

    def with_defect(self, shape: NDArray[np.bool_], class_name: str) -> "Instances":
        """Return these and one more; ``shape`` is (H, W) bool."""
        pile = _Pile(self)
        pile.put((slice(None), slice(None)), shape, class_name)
        return pile.instances()


def draw_instances(
    labels: AnyLabels, width: int, height: int, classes: Sequence[str], root: Path | None
) -> Instances:
    """Draw a frame's defects: each outline, each box, or each 8-connected region of a mask.

    Args:
        labels: The frame's.
        width: Pixels.
        height: Pixels.
        classes: Of the manifest.
        root: Storage root, needed for masks only.

    Raises:
        LabelError: As `data.labels.rasterize`.
    """
    pile = _Pile(Instances(np.zeros((height, width, 1), np.uint16), (), ()))
    if isinstance(labels, MaskLabels):
        planes = rasterize(labels, width, height, classes, root)
        for name, plane in zip(classes, np.moveaxis(planes, 2, 0), strict=True):
            _, regions = cv2.connectedComponents(np.ascontiguousarray(plane), connectivity=8)
            for place, shape in _regions(regions):
                pile.put(place, shape, name)
    alone: Any = BoxLabels if isinstance(labels, BoxLabels) else PolygonLabels
    for outline in shapes(labels):
        name = outline.class_name
        plane = rasterize(alone((outline,)), width, height, (name,), root)[:, :, 0]
        for place, shape in _regions(plane.astype(np.int32)):
            pile.put(place, shape, name)
    return pile.instances()


def _regions(numbered: NDArray[Any]) -> Iterator[tuple[Place, NDArray[np.bool_]]]:
    """Yield the bounding place and the shape in it of each number above 0, (H, W) integers."""
    for number, place in enumerate(find_objects(numbered), start=1):
        if place is not None:
            yield place, numbered[place] == number


class _Pile:
    """Numbers defects and puts each on the first layer where it covers no other."""

    def __init__(self, begun: Instances) -> None:
        self._layers = [layer.copy() for layer in np.moveaxis(begun.layers, 2, 0)]
        self._names = list(begun.class_names)
        self._areas_px = list(begun.areas_px)

    def put(self, place: Place, shape: NDArray[np.bool_], class_name: str) -> None:
        self._names.append(class_name)
        self._areas_px.append(int(shape.sum()))
        free = next((layer for layer in self._layers if not layer[place][shape].any()), None)
        if free is None:
            free = np.zeros_like(self._layers[0])
            self._layers.append(free)
        free[place][shape] = len(self._names)

    def instances(self) -> Instances:
        return Instances(np.stack(self._layers, axis=2), tuple(self._names), tuple(self._areas_px))


def visible_boxes(instances: Instances, *, min_visible_share: float) -> tuple[VisibleBox, ...]:
    """Return the boxes of the defects that are still to be seen, clipped to the frame.

    A piece of a defect is what hangs together within two pixels, which turning a thin scratch may
    open.  Each piece has a box of its own: a mirrored copy away from its defect is one to be found
    as well.  A piece that shows less than ``min_visible_share`` of its defect has none.

    Args:
        instances: After the frame was varied.
        min_visible_share: 0 to 1; 0 keeps every pixel's.
    """
    boxes = []
    for layer in np.moveaxis(instances.layers, 2, 0):
        for number, place in enumerate(find_objects(layer.astype(np.int32)), start=1):
            if place is None:
                continue
            name, area_px = instances.class_names[number - 1], instances.areas_px[number - 1]
            for (rows, columns), count_px in _pieces(layer[place] == number):
                share = count_px / area_px
                if share >= min_visible_share:
                    boxes.append(
                        VisibleBox(
                            class_name=name,
                            x=place[1].start + columns.start,
                            y=place[0].start + rows.start,
                            width=columns.stop - columns.start,
                            height=rows.stop - rows.start,
                            visible_share=min(share, 1.0),
                        )
                    )
    return tuple(boxes)


def boxes_of_labels(
    labels: AnyLabels, width: int, height: int, classes: Sequence[str], root: Path | None
) -> tuple[VisibleBox, ...]:
    """Return the boxes of all of a frame's defects as they are labelled; see `draw_instances`."""
    return visible_boxes(draw_instances(labels, width, height, classes, root), min_visible_share=0)


def _pieces(shape: NDArray[np.bool_]) -> Iterator[tuple[Place, int]]:
    """Yield the bounding place and the pixels of each piece of a defect, (H, W) bool."""
    marked = shape.astype(np.uint8)
    _, pieces = cv2.connectedComponents(cv2.dilate(marked, np.ones((3, 3))), connectivity=8)
    pieces[~shape] = 0
    for number, place in enumerate(find_objects(pieces), start=1):
        if place is not None:
            yield place, int((pieces[place] == number).sum())
