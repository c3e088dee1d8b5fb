"""COCO annotation files (https://cocodataset.org/#format-data): many frames' labels in one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from data.errors import LayoutError
from data.json_document import Place, read_json
from data.labels import (
    Box,
    BoxLabels,
    GoodFrame,
    MaskLabels,
    Polygon,
    PolygonLabels,
    labels_from_boxes,
    labels_from_mask,
    labels_from_polygons,
    rasterize,
    unknown_class,
)
from data.layout import clean_name
from data.masks import KeepMask, encode_mask
from data.run_lengths import read_run_lengths
from data.storage import sha256_hex

# Tools round a box outwards to whole pixels.
_EDGE_TOLERANCE_PX = 1.0
_TOOL = "the annotation tool"
_Entry = TypeVar("_Entry")


@dataclass(frozen=True)
class LabelledFrame:
    """One frame of the file and its labels.

    Attributes:
        file_name: As the file names it, checked to be a safe relative name.
        width: Pixels.
        height: Pixels.
        labels: Outlines where the annotations have them, else boxes; an index mask where one is
            a run-length mask; a frame that no annotation names is good.
        where: Place of the frame's entry: a JSON pointer, or a line.
        name_where: Place of its name.
        drawn: Outlines that were drawn into the index mask.
    """

    file_name: str
    width: int
    height: int
    labels: GoodFrame | BoxLabels | PolygonLabels | MaskLabels
    where: str
    name_where: str
    drawn: int = 0


@dataclass(frozen=True)
class _Segmentation:
    """An annotation's outlines or run-length mask, on their way into an index mask."""

    place: Place
    class_name: str
    polygons: tuple[Polygon, ...]


@dataclass
class _Image:
    """A frame on its way."""

    file_name: str
    width: int
    height: int
    where: str
    boxes: list[Box] = field(default_factory=list)
    segmentations: list[_Segmentation] = field(default_factory=list)

    @property
    def run_lengths(self) -> list[_Segmentation]:
        return [found for found in self.segmentations if not found.polygons]

    def frame(self, classes: Sequence[str] | None, keep_mask: KeepMask | None) -> LabelledFrame:
        labels: GoodFrame | BoxLabels | PolygonLabels | MaskLabels
        polygons = [polygon for found in self.segmentations for polygon in found.polygons]
        if self.run_lengths:
            labels = _keep(self, classes, keep_mask)
            drawn = len(polygons)
        else:
            labels = labels_from_polygons(polygons) if polygons else labels_from_boxes(self.boxes)
            drawn = 0
        where = self.where
        size = (self.width, self.height)
        return LabelledFrame(self.file_name, *size, labels, where, f"{where}/file_name", drawn)


def looks_like_coco(raw: bytes) -> bool:
    """Tell a COCO file from the JSON file of one frame, without reading it.

    A LabelMe file has neither list; a file that merely quotes their names is read as COCO and
    refused at the field that it lacks.
    """
    return b'"images"' in raw and b'"annotations"' in raw


def read_coco(
    raw: bytes,
    *,
    name: str,
    classes: Sequence[str] | None,
    keep_mask: KeepMask | None = None,
) -> tuple[LabelledFrame, ...]:
    """Read a COCO file; coordinates are pixels, (0, 0) the corner of the first.

    An annotation with a ``segmentation`` becomes one outline for each of its parts, one without it
    a box. Frames may differ in that, the annotations of one frame may not. A coordinate up to
    one pixel outside the frame is moved to its edge. ``iscrowd``, ``area`` and keypoints are not
    used.

    A run-length mask makes its whole frame an index mask, into which the frame's outlines are
    drawn. A crowd is marked like one object. Pixels of two classes are refused.

    Args:
        raw: The whole file, UTF-8.
        name: The file as the user knows it, for errors.
        classes: Allowed class names; None allows every name, and no run-length mask.
        keep_mask: Keeps the index masks that are made; None refuses run-length masks.

    Raises:
        LabelError: With the JSON pointer of the first value that can't be meant.
    """
    document = read_json(raw, name=name, tool=_TOOL)
    document.expect(dict, "an object")
    names = _read_categories(document.field("categories"))
    images = _read_images(document.field("images"))
    if not images:
        raise document.field("images").error(
            "label_field_type",
            "The file names no frame.",
            "Export the file again, with the frames that were labelled.",
        )
    for annotation in document.field("annotations").items():
        image = _referred(annotation.field("image_id"), images, "image")
        category = annotation.field("category_id")
        class_name = _referred(category, names, "category")
        if classes is not None and class_name not in classes:
            raise unknown_class(class_name, classes, file=name, where=category.pointer)
        _read_shapes(annotation, class_name, image)
    return tuple(image.frame(classes, keep_mask) for image in images.values())


def _read_categories(categories: Place) -> dict[int, str]:
    names: dict[int, str] = {}
    for category in categories.items():
        name = category.field("name").class_name()
        names[_new_id(category, names)] = name
    return names


def _read_images(images: Place) -> dict[int, _Image]:
    found: dict[int, _Image] = {}
    seen: set[str] = set()
    for image in images.items():
        place = image.field("file_name")
        try:
            file_name = clean_name(place.expect(str, "a file name"))
        except LayoutError as error:
            raise place.error(error.code, error.detail, error.hint or "") from error
        if file_name in seen:
            raise place.error(
                "label_field_type",
                f"Two frames are called {file_name}.",
                "Give each frame one entry.",
            )
        seen.add(file_name)
        width, height = (image.field(side).size() for side in ("width", "height"))
        found[_new_id(image, found)] = _Image(file_name, width, height, image.pointer)
    return found


def _new_id(entry: Place, known: Mapping[int, object]) -> int:
    place = entry.field("id")
    number: int = place.expect(int, "a whole number")
    if number in known:
        raise place.error(
            "label_field_type",
            f"The id {str(number)[:40]} is given twice.",
            "Give each entry an id of its own, or export the file again.",
        )
    return number


def _referred(place: Place, known: Mapping[int, _Entry], what: str) -> _Entry:
    number = place.expect(int, "a whole number")
    if number not in known:
        raise place.error(
            "label_field_type",
            f"There is no {what} with the id {str(number)[:40]}.",
            f"Add the {what}, or remove the annotation.",
        )
    return known[number]


def _read_shapes(annotation: Place, class_name: str, image: _Image) -> None:
    """Add an annotation's outlines or its box to the frame."""
    outlines = annotation.field("segmentation") if annotation.has("segmentation") else None
    if outlines is not None and outlines.value:
        parts = () if isinstance(outlines.value, dict) else outlines.items()
        polygons = tuple(_read_outline(part, class_name, image) for part in parts)
        image.segmentations.append(_Segmentation(outlines, class_name, polygons))
    else:
        image.boxes.append(_read_box(annotation.field("bbox"), class_name, image))
    if image.boxes and image.segmentations:
        raise annotation.error(
            "label_mixed",
            f"The frame {image.file_name} has boxes and outlines or masks.",
            "Give every object of the frame an outline or a mask, or every object a box.",
        )


def _keep(
    image: _Image, classes: Sequence[str] | None, keep_mask: KeepMask | None
) -> GoodFrame | MaskLabels:
    """Make an index mask of a frame's segmentations and keep it."""
    place = image.run_lengths[0].place
    if classes is None:
        raise place.error(
            "label_classes_needed",
            "A run-length mask becomes an index mask, and the data set declares no classes.",
            "Create the data set with its classes, or export outlines (polygons).",
        )
    if keep_mask is None:
        raise place.error(
            "mask_store_needed",
            "A run-length mask becomes an index mask, and no place to keep it is given.",
            "Pass keep_mask, or import the file into the service.",
        )
    mask: NDArray[np.uint8] = np.zeros((image.height, image.width), dtype=np.uint8)
    for found in image.segmentations:
        _mark(mask, found, classes)
    raw = encode_mask(mask)
    return labels_from_mask(mask, file=keep_mask(raw), sha256=sha256_hex(raw))


def _mark(mask: NDArray[np.uint8], found: _Segmentation, classes: Sequence[str]) -> None:
    height, width = mask.shape
    if found.polygons:
        labels = PolygonLabels(found.polygons)
        marked = rasterize(labels, width, height, [found.class_name], None)[:, :, 0] > 0
    else:
        marked = read_run_lengths(found.place, width=width, height=height)
    value = classes.index(found.class_name) + 1
    taken = marked & (mask != 0) & (mask != value)
    if taken.any():
        y, x = np.unravel_index(int(taken.argmax()), taken.shape)
        raise found.place.error(
            "mask_overlap",
            f"The pixel (x={x}, y={y}) is {found.class_name} and {classes[mask[y, x] - 1]}, and an "
            "index mask holds one class a pixel.",
            "Correct the masks so that classes do not overlap.",
        )
    mask[marked] = value


def _read_outline(part: Place, class_name: str, image: _Image) -> Polygon:
    places = part.items()
    if len(places) < 6 or len(places) % 2:
        raise part.error(
            "polygon_too_short",
            f"An outline is x, y of 3 points or more, this one has {len(places)} numbers.",
            "Draw the outline again, or delete it.",
        )
    sides = (image.width, image.height)
    numbers = [
        _inside(place, place.number(), sides[index % 2], "polygon_outside_frame")
        for index, place in enumerate(places)
    ]
    return Polygon(class_name, tuple(zip(numbers[::2], numbers[1::2], strict=True)))


def _read_box(box: Place, class_name: str, image: _Image) -> Box:
    places = box.items()
    if len(places) != 4:
        raise box.error("label_field_type", "A box is [x, y, width, height].", "Correct the box.")
    x, y, width, height = (place.number() for place in places)
    if width <= 0 or height <= 0:
        raise box.error(
            "box_empty",
            f"The box is {width:g} px wide and {height:g} px high.",
            "Draw the box again, or delete the annotation.",
        )
    left, right = (_inside(box, end, image.width, "box_outside_frame") for end in (x, x + width))
    top, bottom = (_inside(box, end, image.height, "box_outside_frame") for end in (y, y + height))
    if left >= right or top >= bottom:
        raise box.error(
            "box_outside_frame",
            f"The box lies outside the frame of {image.width}x{image.height} px.",
            "Move the box inside the frame, or correct the frame's size.",
        )
    # A side that was not moved keeps its length to the last bit.
    width = width if (left, right) == (x, x + width) else right - left
    height = height if (top, bottom) == (y, y + height) else bottom - top
    return Box(class_name, left, top, width, height)


def _inside(place: Place, value: float, side_px: int, code: str) -> float:
    """Return a coordinate moved to the frame's edge if it lies barely outside."""
    if not -_EDGE_TOLERANCE_PX <= value <= side_px + _EDGE_TOLERANCE_PX:
        raise place.error(
            code,
            f"{value:g} px lies outside the frame, which ends at {side_px} px.",
            "Move the shape inside the frame, or correct the frame's size.",
        )
    return min(max(value, 0.0), float(side_px))
