"""What is known about a frame's defects, in the form that the manifest keeps."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Discriminator

from data.errors import LabelError
from data.headers import ImageHeader
from data.masks import present_values, read_mask
from data.storage import read_verified

_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

# cv2.fillPoly takes fixed-point vertices; 4 bits are a sixteenth of a pixel, finer than any hand.
_POLYGON_SHIFT = 4


@dataclass(frozen=True)
class Polygon:
    """One labelled defect's outline.

    Attributes:
        class_name: One of the manifest's classes.
        points: (x, y) in pixels; (0, 0) is the top left corner of the top left pixel.
    """

    __pydantic_config__ = _STRICT

    class_name: str
    points: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        # JSON tells 1 from 1.0 and -0.0 from 0.0, and equal manifests must have equal bytes. Adding
        # 0.0 takes the sign off a zero.
        points = tuple((float(x) + 0.0, float(y) + 0.0) for x, y in self.points)
        object.__setattr__(self, "points", points)

    @property
    def area_px(self) -> float:
        """The enclosed area by the shoelace formula."""
        x, y = np.asarray(self.points, dtype=np.float64).T
        return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)


@dataclass(frozen=True)
class Box:
    """One labelled defect's upright bounding box.

    Attributes:
        class_name: One of the manifest's classes.
        x: Left side in pixels; 0 is the left side of the leftmost pixel.
        y: Upper side in pixels.
        width: Pixels, more than 0.
        height: Pixels, more than 0.
    """

    __pydantic_config__ = _STRICT

    class_name: str
    x: float
    y: float
    width: float
    height: float

    def __post_init__(self) -> None:
        # As for the points of a polygon.
        for name in ("x", "y", "width", "height"):
            object.__setattr__(self, name, float(getattr(self, name)) + 0.0)

    @property
    def area_px(self) -> float:
        """The enclosed area."""
        return self.width * self.height


@dataclass(frozen=True)
class GoodFrame:
    """A frame that a person has declared free of defects."""

    __pydantic_config__ = _STRICT

    kind: Literal["good"] = "good"


@dataclass(frozen=True)
class PolygonLabels:
    """A defective frame's outlines; none at all is `GoodFrame`."""

    __pydantic_config__ = _STRICT

    polygons: tuple[Polygon, ...]
    kind: Literal["polygons"] = "polygons"


@dataclass(frozen=True)
class BoxLabels:
    """A defective frame's boxes; none at all is `GoodFrame`."""

    __pydantic_config__ = _STRICT

    boxes: tuple[Box, ...]
    kind: Literal["boxes"] = "boxes"


@dataclass(frozen=True)
class MaskLabels:
    """A defective frame's index mask, kept as a file; an empty one is `GoodFrame`.

    Attributes:
        file: Path of the mask relative to the storage root.
        sha256: Of the file's bytes, as hex.
        values: Class indices present, ascending: i + 1 stands for classes[i], 0 never appears.
        defects: (class index, area in px) of each 8-connected region; empty if not measured.
    """

    __pydantic_config__ = _STRICT

    file: str
    sha256: str
    values: tuple[int, ...]
    defects: tuple[tuple[int, int], ...] = ()
    kind: Literal["mask"] = "mask"


AnyLabels = GoodFrame | PolygonLabels | BoxLabels | MaskLabels
# As a manifest reads them.
Labels = Annotated[AnyLabels, Discriminator("kind")]


def labels_from_polygons(polygons: Sequence[Polygon]) -> GoodFrame | PolygonLabels:
    """Return the labels of a frame whose annotation file was read; no polygon means good."""
    return PolygonLabels(tuple(polygons)) if polygons else GoodFrame()


def labels_from_boxes(boxes: Sequence[Box]) -> GoodFrame | BoxLabels:
    """Return the labels of a frame whose annotation file was read; no box means good."""
    return BoxLabels(tuple(boxes)) if boxes else GoodFrame()


def labels_from_mask(mask: NDArray[np.uint8], *, file: str, sha256: str) -> GoodFrame | MaskLabels:
    """Return the labels of a frame whose mask was read; nothing marked means good.

    Args:
        mask: (H, W) uint8 index mask from `read_mask`.
        file: Path of the mask relative to the storage root.
        sha256: Of the mask file's bytes, as hex.
    """
    import cv2

    values = tuple(value for value in present_values(mask) if value)
    if not values:
        return GoodFrame()
    defects = []
    for value in values:
        _, _, stats, _ = cv2.connectedComponentsWithStats(
            (mask == value).astype(np.uint8), connectivity=8
        )
        defects += [(value, int(area)) for area in stats[1:, cv2.CC_STAT_AREA]]
    return MaskLabels(file, sha256, values, tuple(defects))


def shapes(labels: AnyLabels) -> tuple[Polygon, ...] | tuple[Box, ...]:
    """Return the outlines or boxes that labels list one by one; a mask lists none."""
    if isinstance(labels, PolygonLabels):
        return labels.polygons
    return labels.boxes if isinstance(labels, BoxLabels) else ()


def named_classes(labels: AnyLabels) -> set[str]:
    """Return the classes that the label file itself names; a mask names none."""
    return {shape.class_name for shape in shapes(labels)}


def is_defective(labels: AnyLabels) -> bool:
    """Tell whether any defect is labelled."""
    return bool(labels.values if isinstance(labels, MaskLabels) else shapes(labels))


def labelled_defects(labels: AnyLabels, classes: Sequence[str]) -> list[tuple[str, float | None]]:
    """Return (class name, area in px) of each labelled defect; None where it was not measured.

    A box's area is the box's, which a defect seldom fills.
    """
    if isinstance(labels, MaskLabels):
        if labels.defects:
            return [(classes[value - 1], float(area)) for value, area in labels.defects]
        return [(classes[value - 1], None) for value in labels.values]
    return [(shape.class_name, shape.area_px) for shape in shapes(labels)]


def check_labels_fit(labels_size: tuple[int, int], header: ImageHeader, name: str) -> None:
    """Refuse labels that were drawn on a picture of another size.

    Args:
        labels_size: (width, height) of the mask, or as the LabelMe file states.
        header: The picture's.
        name: The label file, for the error.

    Raises:
        LabelError: ``label_size_mismatch``.
    """
    if labels_size != (header.width, header.height):
        raise LabelError(
            "label_size_mismatch",
            f"The labels are for {labels_size[0]}x{labels_size[1]} px, "
            f"the picture has {header.width}x{header.height} px.",
            file=name,
            hint="Upload the picture that was labelled; labels are never rescaled.",
        )


def rasterize(
    labels: AnyLabels,
    width: int,
    height: int,
    classes: Sequence[str],
    root: Path | None,
) -> NDArray[np.uint8]:
    """Draw labels as one binary plane a class.

    A polygon covers the pixels inside and under its outline, as LabelMe draws it, so that the
    thinnest scratch keeps at least a line of pixels. A box covers the pixels that it touches.

    Args:
        labels: The frame's.
        width: Pixels.
        height: Pixels.
        classes: Order of the planes.
        root: Storage root, needed for masks only.

    Returns:
        (H, W, K) uint8 of 0 and 1, C-contiguous.

    Raises:
        LabelError: A class is unknown, or the mask file is missing, changed or of another size.
    """
    planes: NDArray[np.uint8] = np.zeros((len(classes), height, width), dtype=np.uint8)
    if isinstance(labels, PolygonLabels):
        _draw_polygons(labels, planes, classes)
    elif isinstance(labels, BoxLabels):
        _draw_boxes(labels, planes, classes)
    elif isinstance(labels, MaskLabels):
        mask = _read_stored_mask(labels, classes, root)
        if mask.shape != (height, width):
            raise LabelError(
                "label_size_mismatch",
                f"The mask has {mask.shape[1]}x{mask.shape[0]} px, the picture {width}x{height}.",
                file=labels.file,
                hint="Upload the mask that was drawn on this picture.",
            )
        for index, plane in enumerate(planes):
            np.equal(mask, index + 1, out=plane.view(np.bool_))
    return np.ascontiguousarray(planes.transpose(1, 2, 0))


def _draw_polygons(
    labels: PolygonLabels, planes: NDArray[np.uint8], classes: Sequence[str]
) -> None:
    import cv2

    for polygon in labels.polygons:
        # cv2 puts integer coordinates at pixel centres; labels put them at pixel corners.
        points = np.asarray(polygon.points, dtype=np.float64) - 0.5
        fixed = np.rint(points * (1 << _POLYGON_SHIFT)).astype(np.int32)
        plane = _plane_of(polygon.class_name, planes, classes)
        cv2.fillPoly(plane, [fixed], color=1, lineType=cv2.LINE_8, shift=_POLYGON_SHIFT)


def _draw_boxes(labels: BoxLabels, planes: NDArray[np.uint8], classes: Sequence[str]) -> None:
    for box in labels.boxes:
        rows = slice(math.floor(box.y), math.ceil(box.y + box.height))
        columns = slice(math.floor(box.x), math.ceil(box.x + box.width))
        _plane_of(box.class_name, planes, classes)[rows, columns] = 1


def _plane_of(
    class_name: str, planes: NDArray[np.uint8], classes: Sequence[str]
) -> NDArray[np.uint8]:
    if class_name not in classes:
        raise unknown_class(class_name, classes)
    plane: NDArray[np.uint8] = planes[classes.index(class_name)]
    return plane


def _read_stored_mask(
    labels: MaskLabels, classes: Sequence[str], root: Path | None
) -> NDArray[np.uint8]:
    if root is None:
        raise LabelError(
            "label_missing",
            "The mask is a file, and no storage root was given.",
            file=labels.file,
            hint="Pass the folder that the manifest's paths are relative to.",
        )
    raw = read_verified(root, labels.file, labels.sha256)
    return read_mask(raw, name=labels.file, classes=classes)


def unknown_class(
    class_name: str, classes: Sequence[str], *, file: str | None = None, where: str | None = None
) -> LabelError:
    """Return the error for a class that the data set does not have."""
    return LabelError(
        "unknown_class",
        f"The class {class_name!r} is none of {', '.join(classes)}.",
        file=file,
        where=where,
        hint="Correct the label, or create the data set with this class.",
    )
