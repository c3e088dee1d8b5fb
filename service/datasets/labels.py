"""Label files on their way between an upload, a row and a manifest."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from data.errors import LabelError
from data.labelme import read_labelme
from data.labels import (
    Labels,
    PolygonLabels,
    labelled_defects,
    labels_from_mask,
    labels_from_polygons,
)
from data.masks import read_mask

# The class of binary masks in a data set that declares no classes.
UNDECLARED_MASK_CLASS = "defect"

_CONTENT: TypeAdapter[Labels] = TypeAdapter(Labels)


@dataclass(frozen=True)
class ReadLabel:
    """What a label file says.

    Attributes:
        width: Of the frame it is for, in pixels.
        height: Of the frame it is for, in pixels.
        labels: As the manifest keeps them.
        classes: Class name to the number of its defects.
    """

    width: int
    height: int
    labels: Labels
    classes: dict[str, int]


def read_label(
    raw: bytes,
    *,
    name: str,
    kind: Literal["mask", "labelme"],
    classes: Sequence[str] | None,
    file: str,
    sha256: str,
) -> ReadLabel:
    """Read a label file completely.

    Args:
        raw: The whole file.
        name: The file as the user knows it.
        kind: From `data.layout.sample_key`.
        classes: Declared classes; without them outlines may name any class, and masks are binary.
        file: Where the blob will be, relative to the storage root.
        sha256: Of ``raw``.

    Raises:
        LabelError: With the place of the first thing that can't be meant.
        ImageError: A mask that can't be decoded.
    """
    labels: Labels
    if kind == "labelme":
        document = read_labelme(raw, name=name, classes=classes)
        width, height = document.width, document.height
        labels = labels_from_polygons(document.polygons)
        present = sorted({polygon.class_name for polygon in document.polygons})
    else:
        present = list(classes or [UNDECLARED_MASK_CLASS])
        mask = _read_mask(raw, name, present, declared=classes is not None)
        height, width = mask.shape
        labels = labels_from_mask(mask, file=file, sha256=sha256)
    counts = Counter(class_name for class_name, _ in labelled_defects(labels, present))
    return ReadLabel(width, height, labels, dict(sorted(counts.items())))


def dump_labels(labels: Labels) -> str:
    """Return labels as JSON for a row."""
    return _CONTENT.dump_json(labels).decode()


def load_labels(content: str) -> Labels:
    """Return the labels that `dump_labels` wrote."""
    return _CONTENT.validate_json(content)


def named_classes(labels: Labels) -> set[str]:
    """Return the classes that the label file itself names; a mask names none."""
    if isinstance(labels, PolygonLabels):
        return {polygon.class_name for polygon in labels.polygons}
    return set()


def _read_mask(
    raw: bytes, name: str, classes: Sequence[str], *, declared: bool
) -> NDArray[np.uint8]:
    try:
        return read_mask(raw, name=name, classes=classes)
    except LabelError as error:
        if declared or error.code != "mask_value":
            raise
        raise LabelError(
            error.code,
            f"{error.detail} The data set declares no classes, so masks hold one.",
            file=error.file,
            where=error.where,
            hint="Create the data set with its classes, in the order of the masks' values.",
        ) from error
