"""LabelMe annotation files (https://github.com/wkentaro/labelme), read strictly."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from data.errors import LabelError
from data.labels import Polygon, unknown_class

# A click on the frame's last pixel is stored as the pixel's far corner, and rounding adds a little;
# the real files that were checked (155 outlines) stay inside entirely.
_EDGE_TOLERANCE_PX = 0.5

_CIRCLE_POINTS = 72


@dataclass(frozen=True)
class LabelMeFile:
    """What a LabelMe file says.

    Attributes:
        image_name: The last component of ``imagePath``; pairing goes by the files' own names.
        width: ``imageWidth`` in pixels.
        height: ``imageHeight`` in pixels.
        polygons: Outlines, clipped to the frame.
    """

    image_name: str
    width: int
    height: int
    polygons: tuple[Polygon, ...]


class _Place:
    """A value in the document together with its JSON pointer (RFC 6901)."""

    def __init__(self, value: Any, pointer: str, name: str) -> None:
        self.value = value
        self.pointer = pointer
        self._name = name

    def error(self, code: str, detail: str, hint: str) -> LabelError:
        return LabelError(code, detail, file=self._name, where=self.pointer or "/", hint=hint)

    def field(self, key: str) -> "_Place":
        escaped = key.replace("~", "~0").replace("/", "~1")
        if not isinstance(self.value, dict) or key not in self.value:
            raise _Place(None, f"{self.pointer}/{escaped}", self._name).error(
                "label_field_missing",
                f"The field {key!r} is missing.",
                "Save the file again with LabelMe; it writes this field.",
            )
        return _Place(self.value[key], f"{self.pointer}/{escaped}", self._name)

    def items(self) -> list["_Place"]:
        values = self.expect(list, "a list")
        return [_Place(v, f"{self.pointer}/{i}", self._name) for i, v in enumerate(values)]

    def expect(self, kind: type | tuple[type, ...], description: str) -> Any:
        # bool is a subclass of int, and `true` is no number of pixels.
        if not isinstance(self.value, kind) or isinstance(self.value, bool):
            raise self.error(
                "label_field_type",
                f"Expected {description}, found {_shown(self.value)}.",
                "Save the file again with LabelMe, or correct the value.",
            )
        return self.value

    @property
    def name(self) -> str:
        return self._name


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "..."


def read_labelme(raw: bytes, *, name: str, classes: Sequence[str] | None) -> LabelMeFile:
    """Read a LabelMe file; ``imageData`` is never decoded.

    Polygons, rectangles and circles are read (circles as 72-gons); lines, points and bitmap shapes
    enclose no area that could be learned or measured and are refused.

    Args:
        raw: The whole file, UTF-8.
        name: The file as the user knows it, for errors.
        classes: Allowed class names; None allows every name.

    Raises:
        LabelError: With the JSON pointer of the first value that can't be meant.
    """
    document = _Place(_parse(raw, name), "", name)
    document.expect(dict, "an object")
    path = document.field("imagePath").expect(str, "a string")
    width, height = (_read_side(document.field(key)) for key in ("imageWidth", "imageHeight"))
    polygons = tuple(
        _read_shape(shape, width, height, classes) for shape in document.field("shapes").items()
    )
    image_name = path.replace("\\", "/").rpartition("/")[2]
    return LabelMeFile(image_name, width, height, polygons)


def _parse(raw: bytes, name: str) -> Any:
    def refuse_constant(constant: str) -> NoReturn:
        line = raw.count(b"\n", 0, raw.find(constant.encode())) + 1
        raise LabelError(
            "label_not_json",
            f"{constant} is no JSON number.",
            file=name,
            where=f"line {line}",
            hint="Save the file again with LabelMe, or correct the value.",
        )

    try:
        return json.loads(raw.decode("utf-8-sig"), parse_constant=refuse_constant)
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        detail, where = "The file is not UTF-8 text.", f"line {line}"
    except json.JSONDecodeError as error:
        detail, where = f"The file is no JSON: {error.msg}.", f"line {error.lineno}"
    except (RecursionError, ValueError) as error:
        # Nesting without end, or an integer of thousands of digits.
        detail, where = f"The file is no reasonable JSON: {error}.", "line 1"
    raise LabelError(
        "label_not_json",
        detail,
        file=name,
        where=where,
        hint="Upload the file as LabelMe saved it.",
    )


def _read_side(place: _Place) -> int:
    side = place.expect(int, "a whole number of pixels")
    if side < 1:
        raise place.error(
            "label_field_type", f"{side} px is no size.", "Save the file again with LabelMe."
        )
    return int(side)


def _read_shape(shape: _Place, width: int, height: int, classes: Sequence[str] | None) -> Polygon:
    shape.expect(dict, "an object")
    label = shape.field("label")
    class_name = label.expect(str, "a class name")
    if not class_name.strip():
        raise label.error(
            "label_field_type", "The class name is empty.", "Name the defect's class."
        )
    if classes is not None and class_name not in classes:
        raise unknown_class(class_name, classes, file=shape.name, where=label.pointer)
    place = shape.field("points")
    points = [_read_point(point) for point in place.items()]
    # LabelMe before 3.16 wrote no shape_type and knew polygons only.
    kind = shape.field("shape_type").value if "shape_type" in shape.value else "polygon"
    points = _outline(shape, place, str(kind), points)
    return Polygon(class_name, _clip(place, points, width, height))


def _read_point(place: _Place) -> tuple[float, float]:
    coordinates = place.items()
    if len(coordinates) != 2:
        raise place.error("label_field_type", "A point is [x, y].", "Correct the point.")
    x, y = (float(c.expect((int, float), "a number of pixels")) for c in coordinates)
    if not (math.isfinite(x) and math.isfinite(y)):
        raise place.error(
            "label_field_type", "A coordinate is beyond all measure.", "Correct the point."
        )
    return x, y


def _outline(
    shape: _Place, place: _Place, kind: str, points: list[tuple[float, float]]
) -> list[tuple[float, float]]:
    if kind == "rectangle" and len(points) == 2:
        (x0, y0), (x1, y1) = points
        return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
    if kind == "circle" and len(points) == 2:
        (x, y), edge = points
        radius = math.dist((x, y), edge)
        angles = [2 * math.pi * step / _CIRCLE_POINTS for step in range(_CIRCLE_POINTS)]
        return [(x + radius * math.cos(a), y + radius * math.sin(a)) for a in angles]
    # LabelMe 5.5 and later write a rectangle's four corners.
    if kind == "polygon" or (kind == "rectangle" and len(points) == 4):
        if len(points) < 3:
            raise place.error(
                "polygon_too_short",
                f"A polygon needs 3 points, this one has {len(points)}.",
                "Draw the outline again in LabelMe, or delete the shape.",
            )
        return points
    if kind in ("rectangle", "circle"):
        raise place.error(
            "polygon_too_short",
            f"A {kind} is 2 points, this one has {len(points)}.",
            "Draw the shape again in LabelMe, or delete it.",
        )
    raise shape.field("shape_type").error(
        "unsupported_shape",
        f"The shape type {kind!r} has no outline to learn from.",
        "Draw the defect as polygon, rectangle or circle; LabelMe can convert a shape.",
    )


def _clip(
    place: _Place, points: list[tuple[float, float]], width: int, height: int
) -> tuple[tuple[float, float], ...]:
    margin = _EDGE_TOLERANCE_PX
    clipped = []
    for index, (x, y) in enumerate(points):
        if not (-margin <= x <= width + margin and -margin <= y <= height + margin):
            # A circle's outline has more points than the file; its list is the place then.
            exact = len(points) == len(place.value)
            raise LabelError(
                "polygon_outside_frame",
                f"The point ({x:g}, {y:g}) lies outside the frame of {width}x{height} px.",
                file=place.name,
                where=f"{place.pointer}/{index}" if exact else place.pointer,
                hint="Move the outline inside the frame, or upload the picture it was drawn on.",
            )
        clipped.append((min(max(x, 0.0), float(width)), min(max(y, 0.0), float(height))))
    return tuple(clipped)
