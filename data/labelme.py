"""LabelMe annotation files (https://github.com/wkentaro/labelme), read strictly."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from data.errors import LabelError
from data.json_document import Place, read_json
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
    document = read_json(raw, name=name, tool="LabelMe")
    document.expect(dict, "an object")
    path = document.field("imagePath").expect(str, "a string")
    width, height = (document.field(key).size() for key in ("imageWidth", "imageHeight"))
    polygons = tuple(
        _read_shape(shape, width, height, classes) for shape in document.field("shapes").items()
    )
    image_name = path.replace("\\", "/").rpartition("/")[2]
    return LabelMeFile(image_name, width, height, polygons)


def _read_shape(shape: Place, width: int, height: int, classes: Sequence[str] | None) -> Polygon:
    shape.expect(dict, "an object")
    label = shape.field("label")
    class_name = label.class_name()
    if classes is not None and class_name not in classes:
        raise unknown_class(class_name, classes, file=shape.file, where=label.pointer)
    place = shape.field("points")
    points = [_read_point(point) for point in place.items()]
    # LabelMe before 3.16 wrote no shape_type and knew polygons only.
    kind = shape.field("shape_type").value if "shape_type" in shape.value else "polygon"
    points = _outline(shape, place, str(kind), points)
    return Polygon(class_name, _clip(place, points, width, height))


def _read_point(place: Place) -> tuple[float, float]:
    coordinates = place.items()
    if len(coordinates) != 2:
        raise place.error("label_field_type", "A point is [x, y].", "Correct the point.")
    x, y = (coordinate.number() for coordinate in coordinates)
    return x, y


def _outline(
    shape: Place, place: Place, kind: str, points: list[tuple[float, float]]
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
    place: Place, points: list[tuple[float, float]], width: int, height: int
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
                file=place.file,
                where=f"{place.pointer}/{index}" if exact else place.pointer,
                hint="Move the outline inside the frame, or upload the picture it was drawn on.",
            )
        clipped.append((min(max(x, 0.0), float(width)), min(max(y, 0.0), float(height))))
    return tuple(clipped)
