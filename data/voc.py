"""Pascal VOC annotation files (http://host.robots.ox.ac.uk/pascal/VOC/), read strictly."""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from data.decimal_places import EXACT, extent, read_decimal
from data.labels import Box, unknown_class
from data.limits import MOST_LABELLED_PX
from data.xml_tree import Element, read_xml

# The format counts pixels from 1 and includes the last one; tools that count from 0 leave a side
# one pixel outside.
_EDGE_TOLERANCE_PX = 1.0


@dataclass(frozen=True)
class VocFile:
    """What a Pascal VOC file says.

    Attributes:
        width: ``size/width`` in pixels.
        height: ``size/height`` in pixels.
        boxes: Clipped to the frame.
    """

    width: int
    height: int
    boxes: tuple[Box, ...]


def read_voc(raw: bytes, *, name: str, classes: Sequence[str] | None) -> VocFile:
    """Read a Pascal VOC file.

    A box from ``xmin`` to ``xmax`` covers both pixels, counted from 1, as the format's development
    kit says: it reaches from ``xmin - 1`` to ``xmax`` in the coordinates of `Box`. A side up to one
    pixel outside is moved to the frame's edge. ``difficult``, ``truncated``, ``pose`` and ``part``
    are not used: a defect that is hard to see is a defect.

    Args:
        raw: The whole file.
        name: The file as the user knows it, for errors.
        classes: Allowed class names; None allows every name.

    Raises:
        LabelError: With the line of the first value that can't be meant.
    """
    root = read_xml(raw, name=name)
    if root.tag != "annotation":
        raise root.error(
            "label_field_type",
            f"The root element is <{root.tag}>, not <annotation>.",
            "Upload the Pascal VOC file of one frame.",
        )
    size = root.only("size")
    width, height = (_read_side(size.only(side)) for side in ("width", "height"))
    boxes = (_read_object(found, width, height, classes) for found in root.all("object"))
    return VocFile(width, height, tuple(boxes))


def _read_side(element: Element) -> int:
    side = float(_read_number(element))
    if not 1 <= side <= MOST_LABELLED_PX or side != int(side):
        raise element.error(
            "label_field_type",
            f"{element.text} px is no size.",
            "Correct it to the picture's size, or export the file again.",
        )
    return int(side)


def _read_number(element: Element) -> Decimal:
    number = read_decimal(element.text)
    if number is None:
        raise element.error(
            "label_field_type",
            f"<{element.tag}> is {element.text[:40]!r}, not a number of pixels.",
            "Correct the value, or export the file again.",
        )
    return number


def _read_object(found: Element, width: int, height: int, classes: Sequence[str] | None) -> Box:
    label = found.only("name")
    if not label.text:
        raise label.error(
            "label_field_type", "The class name is empty.", "Name the defect's class."
        )
    if classes is not None and label.text not in classes:
        raise unknown_class(label.text, classes, file=found.file, where=f"line {label.line}")
    box = found.only("bndbox")
    left, top, right, bottom = (
        _read_number(box.only(side)) for side in ("xmin", "ymin", "xmax", "ymax")
    )
    x, box_width = _clip(box, EXACT.subtract(left, Decimal(1)), right, width, "x")
    y, box_height = _clip(box, EXACT.subtract(top, Decimal(1)), bottom, height, "y")
    return Box(label.text, x, y, box_width, box_height)


def _clip(box: Element, begin: Decimal, end: Decimal, side: int, axis: str) -> tuple[float, float]:
    """Return where the box begins along an axis and how long it is, inside the frame."""
    low, high = float(begin), float(end)
    if low >= high:
        raise box.error(
            "box_empty",
            f"The box ends before it begins: {axis}min {low + 1:g}, {axis}max {high:g}.",
            "Draw the box again, or delete the object.",
        )
    inside = extent(begin, end, side)
    if inside is None or max(-low, high - side) > _EDGE_TOLERANCE_PX:
        raise box.error(
            "box_outside_frame",
            f"Along {axis} the box reaches from {low + 1:g} to {high:g}, the frame to {side}.",
            "Move the box inside the frame, or upload the picture it was drawn on.",
        )
    return inside
