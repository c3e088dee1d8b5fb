"""CVAT's XML for images, version 1.1 (https://docs.cvat.ai): many frames' labels in one file."""

import math
from collections.abc import Sequence

from data.coco import LabelledFrame
from data.errors import LabelError, LayoutError
from data.labels import (
    Box,
    Polygon,
    labels_from_boxes,
    labels_from_polygons,
    unknown_class,
)
from data.layout import clean_name
from data.limits import MOST_LABELLED_PX
from data.xml_tree import Element, read_xml

# Tools round a shape outwards to whole pixels.
_EDGE_TOLERANCE_PX = 1.0
_SHAPES = frozenset({"box", "polygon"})
_REMEDIES = {
    "mask": "Export outlines (polygons), COCO's run-length masks, or index masks as PNG.",
    "tag": "Delete the tag, or draw what it is about.",
}


def looks_like_cvat(raw: bytes) -> bool:
    """Tell a CVAT file from the Pascal VOC file of one frame, without reading it."""
    return b"<annotations" in raw


def read_cvat(raw: bytes, *, name: str, classes: Sequence[str] | None) -> tuple[LabelledFrame, ...]:
    """Read a CVAT file: boxes or polygons; a frame without any is good.

    A coordinate up to one pixel outside the frame is moved to its edge. ``occluded``, ``z_order``,
    ``source`` and attributes are not used. A box that is rotated and every other shape (mask,
    polyline, points, ellipse, cuboid, skeleton, tag) is refused: it is no outline.

    Args:
        raw: The whole file.
        name: The file as the user knows it, for errors.
        classes: Allowed class names; None allows every name.

    Raises:
        LabelError: With the line of the first value that can't be meant.
    """
    root = read_xml(raw, name=name)
    if root.tag != "annotations":
        raise root.error(
            "label_field_type",
            f"The root element is <{root.tag}>, not <annotations>.",
            "Export the task as CVAT for images 1.1.",
        )
    images = root.all("image")
    if not images:
        raise root.error(
            "label_field_type",
            "The file names no <image>.",
            "Export the task as CVAT for images 1.1; that for video is another format.",
        )
    frames: dict[str, LabelledFrame] = {}
    for image in images:
        frame = _read_image(image, classes)
        if frame.file_name in frames:
            raise image.error(
                "label_field_type",
                f"Two frames are called {frame.file_name}.",
                "Give each frame one entry.",
            )
        frames[frame.file_name] = frame
    return tuple(frames.values())


def _read_image(image: Element, classes: Sequence[str] | None) -> LabelledFrame:
    try:
        file_name = clean_name(_attribute(image, "name"))
    except LayoutError as error:
        raise image.error(error.code, error.detail, error.hint or "") from error
    width, height = (_read_side(image, side) for side in ("width", "height"))
    boxes: list[Box] = []
    polygons: list[Polygon] = []
    for shape in image.children:
        class_name = _class_name(shape, classes)
        if shape.tag == "box":
            boxes.append(_read_box(shape, class_name, width, height))
        else:
            polygons.append(_read_polygon(shape, class_name, width, height))
        if boxes and polygons:
            raise shape.error(
                "label_mixed",
                f"The frame {file_name} has boxes and outlines.",
                "Give every object of the frame an outline, or every object a box.",
            )
    labels = labels_from_polygons(polygons) if polygons else labels_from_boxes(boxes)
    where = f"line {image.line}"
    return LabelledFrame(file_name, width, height, labels, where, where)


def _class_name(shape: Element, classes: Sequence[str] | None) -> str:
    if shape.tag not in _SHAPES or _number(shape, shape.attributes.get("rotation", "0")) != 0:
        raise shape.error(
            "unsupported_shape",
            f"The object is a <{shape.tag}>"
            + (" that is rotated." if shape.tag in _SHAPES else ", neither box nor polygon."),
            _REMEDIES.get(shape.tag, "Draw it as polygon, or delete it."),
        )
    class_name = _attribute(shape, "label").strip()
    if not class_name:
        raise shape.error(
            "label_field_type", "The class name is empty.", "Name the defect's class."
        )
    if classes is not None and class_name not in classes:
        raise unknown_class(class_name, classes, file=shape.file, where=f"line {shape.line}")
    return class_name


def _read_box(shape: Element, class_name: str, width: int, height: int) -> Box:
    left, right = (_inside(shape, _attribute(shape, end), width, "box") for end in ("xtl", "xbr"))
    top, bottom = (_inside(shape, _attribute(shape, end), height, "box") for end in ("ytl", "ybr"))
    if left >= right or top >= bottom:
        raise shape.error(
            "box_empty",
            f"The box from ({left:g}, {top:g}) to ({right:g}, {bottom:g}) ends before it begins.",
            "Draw the box again, or delete it.",
        )
    return Box(class_name, left, top, right - left, bottom - top)


def _read_polygon(shape: Element, class_name: str, width: int, height: int) -> Polygon:
    pairs = [pair.split(",") for pair in _attribute(shape, "points").split(";")]
    if len(pairs) < 3 or any(len(pair) != 2 for pair in pairs):
        raise shape.error(
            "polygon_too_short",
            "An outline is x,y of 3 points or more, parted by semicolons.",
            "Draw the outline again, or delete it.",
        )
    points = tuple(
        (_inside(shape, x, width, "polygon"), _inside(shape, y, height, "polygon"))
        for x, y in pairs
    )
    return Polygon(class_name, points)


def _attribute(element: Element, name: str) -> str:
    if name not in element.attributes:
        raise element.error(
            "label_field_missing",
            f"<{element.tag}> has no {name}.",
            "Export the file again with the annotation tool; it writes this attribute.",
        )
    return element.attributes[name]


def _read_side(image: Element, side: str) -> int:
    text = _attribute(image, side)
    if not (text.isascii() and text.isdigit() and 1 <= float(text) <= MOST_LABELLED_PX):
        raise image.error(
            "label_field_type",
            f"{text[:40]!r} px is no size.",
            "Export the file again with the annotation tool.",
        )
    return int(text)


def _inside(shape: Element, text: str, side_px: int, kind: str) -> float:
    """Return a coordinate moved to the frame's edge if it lies barely outside."""
    value = _number(shape, text)
    if not -_EDGE_TOLERANCE_PX <= value <= side_px + _EDGE_TOLERANCE_PX:
        raise _outside(shape, value, side_px, kind)
    return min(max(value, 0.0), float(side_px))


def _number(shape: Element, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise shape.error(
            "label_field_type",
            f"{text[:40]!r} is not a number of pixels.",
            "Correct the value, or export the file again.",
        )
    return value


def _outside(shape: Element, value: float, side_px: int, kind: str) -> LabelError:
    detail = f"{value:g} px lies outside the frame, which ends at {side_px} px."
    hint = "Move the shape inside the frame, or correct the frame's size."
    if kind == "box":
        return shape.error("box_outside_frame", detail, hint)
    return shape.error("polygon_outside_frame", detail, hint)
