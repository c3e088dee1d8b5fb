"""YOLO annotation files, one line an object (https://docs.ultralytics.com/datasets/), strictly."""

from collections.abc import Sequence
from decimal import Decimal

from data.decimal_places import EXACT, extent, read_decimal
from data.labels import Box, BoxLabels, GoodFrame, Polygon, PolygonLabels
from data.text_lines import TextLine, text_lines

# Writers round to six digits, which is a hundredth of a pixel; clicks on the last pixel add some.
_EDGE_TOLERANCE_PX = 0.5
_BOX_NUMBERS = 5
_LEAST_OUTLINE_NUMBERS = 7


class _Line:
    """One line's columns."""

    def __init__(self, line: TextLine) -> None:
        self.columns = line.text.split()
        self.error = line.error

    def class_name(self, classes: Sequence[str]) -> str:
        index = self.columns[0]
        # A plain run of digits: int() would also take "1_0" and "٣".
        if not (index.isascii() and index.isdigit()):
            raise self.error(
                "label_field_type",
                f"{index[:40]!r} is no class number.",
                "A line begins with the number of its class, counted from 0.",
            )
        if len(index) > 3 or int(index) >= len(classes):
            raise self.error(
                "unknown_class",
                f"The class number {index[:40]} is none of 0 to {len(classes) - 1} "
                f"({', '.join(classes)}).",
                "Correct the label, or create the data set with every class, in the order of "
                "data.yaml.",
            )
        return classes[int(index)]

    def numbers(self) -> list[Decimal]:
        values = []
        for text in self.columns[1:]:
            value = read_decimal(text)
            if value is None:
                raise self.error(
                    "label_field_type",
                    f"{text[:40]!r} is not a number.",
                    "Correct the value, or export the file again.",
                )
            values.append(value)
        return values


def read_yolo(
    raw: bytes, *, name: str, classes: Sequence[str], width: int, height: int
) -> GoodFrame | BoxLabels | PolygonLabels:
    """Read a YOLO file: boxes (``class x y w h``) or outlines (``class x1 y1 x2 y2 x3 y3 …``).

    Coordinates are parts of the frame's width and height, a box's place is its centre, and classes
    are numbered from 0. A file without a line declares a good frame.

    Args:
        raw: The whole file, UTF-8.
        name: The file as the user knows it, for errors.
        classes: Class ``i`` is ``classes[i]``.
        width: Of the frame, in pixels.
        height: Of the frame, in pixels.

    Raises:
        LabelError: With the line of the first value that can't be meant.
    """
    boxes: list[Box] = []
    polygons: list[Polygon] = []
    for line in map(_Line, text_lines(raw, name=name)):
        if not line.columns:
            continue
        class_name, numbers = line.class_name(classes), line.numbers()
        if len(line.columns) == _BOX_NUMBERS:
            boxes.append(_read_box(line, class_name, numbers, width, height))
        elif len(line.columns) >= _LEAST_OUTLINE_NUMBERS and len(line.columns) % 2:
            polygons.append(_read_outline(line, class_name, numbers, width, height))
        else:
            raise line.error(
                "label_field_type",
                f"The line has {len(line.columns)} numbers, where a box has 5 and an outline 7, 9, "
                "11 and so on.",
                "Export the labels again; a prediction's confidence does not belong here.",
            )
        if boxes and polygons:
            raise line.error(
                "label_mixed",
                "The file holds boxes and outlines.",
                "Give every object of the frame an outline, or every object a box.",
            )
    if polygons:
        return PolygonLabels(tuple(polygons))
    return BoxLabels(tuple(boxes)) if boxes else GoodFrame()


def _read_box(
    line: _Line, class_name: str, numbers: Sequence[Decimal], width: int, height: int
) -> Box:
    x, y, box_width, box_height = numbers
    if box_width <= 0 or box_height <= 0:
        raise line.error(
            "box_empty",
            f"The box is {float(box_width):g} wide and {float(box_height):g} high.",
            "Draw the box again, or delete the line.",
        )
    left, width_px = _side(line, x, box_width, width)
    top, height_px = _side(line, y, box_height, height)
    return Box(class_name, left, top, width_px, height_px)


def _side(line: _Line, centre: Decimal, length: Decimal, side_px: int) -> tuple[float, float]:
    """Return where a box begins along an axis and how long it is, in pixels inside the frame."""
    half = EXACT.divide(length, Decimal(2))
    low, high = (
        EXACT.multiply(end, Decimal(side_px))
        for end in (EXACT.subtract(centre, half), EXACT.add(centre, half))
    )
    for place in (low, high):
        _check_inside(line, float(place), side_px, "box_outside_frame")
    inside = extent(low, high, side_px)
    if inside is None:
        raise line.error(
            "box_outside_frame",
            "The box lies outside the frame.",
            "Export the labels again for this picture, normalized.",
        )
    return inside


def _read_outline(
    line: _Line, class_name: str, numbers: Sequence[Decimal], width: int, height: int
) -> Polygon:
    points = zip(numbers[::2], numbers[1::2], strict=True)
    return Polygon(
        class_name,
        tuple(
            (
                _inside(line, x, width, "polygon_outside_frame"),
                _inside(line, y, height, "polygon_outside_frame"),
            )
            for x, y in points
        ),
    )


def _inside(line: _Line, part: Decimal, side_px: int, code: str) -> float:
    """Return a coordinate in pixels, moved to the frame's edge if it lies barely outside."""
    place = float(EXACT.multiply(part, Decimal(side_px)))
    _check_inside(line, place, side_px, code)
    return min(max(place, 0.0), float(side_px))


def _check_inside(line: _Line, place: float, side_px: int, code: str) -> None:
    if not -_EDGE_TOLERANCE_PX <= place <= side_px + _EDGE_TOLERANCE_PX:
        raise line.error(
            code,
            f"{place / side_px:g} of {side_px} px lies outside the frame; coordinates are parts of "
            "the frame, 0 to 1.",
            "Export the labels again for this picture, normalized.",
        )
