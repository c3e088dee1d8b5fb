"""Reading the label file of one frame, whatever its format."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from data.class_masks import ClassMaskFile, merge_class_masks
from data.coco import looks_like_coco
from data.cvat import looks_like_cvat
from data.deeppcb import read_deeppcb
from data.errors import LabelError
from data.labelme import read_labelme
from data.labels import (
    Labels,
    labels_from_boxes,
    labels_from_mask,
    labels_from_polygons,
    unknown_class,
)
from data.limits import DEFAULT_LIMITS, PixelLimits
from data.masks import KeepMask, encode_mask, read_mask
from data.storage import sha256_hex
from data.voc import read_voc
from data.yolo import read_yolo

LabelKind = Literal["mask", "labelme", "voc", "yolo", "deeppcb"]

# The class of binary masks whose classes nobody declared.
UNDECLARED_MASK_CLASS = "defect"


@dataclass(frozen=True)
class LabelFile:
    """What a label file says.

    Attributes:
        width: Of the frame it is for, in pixels.
        height: Of the frame it is for, in pixels.
        labels: As the manifest keeps them.
    """

    width: int
    height: int
    labels: Labels


def read_label_file(
    raw: bytes,
    *,
    name: str,
    kind: LabelKind,
    classes: Sequence[str] | None,
    file: str,
    sha256: str,
    frame_size: tuple[int, int] | None,
    numbered: Sequence[str] | None = None,
    class_name: str | None = None,
    keep_mask: KeepMask | None = None,
    limits: PixelLimits = DEFAULT_LIMITS,
) -> LabelFile:
    """Read a label file completely.

    Args:
        raw: The whole file.
        name: The file as the user knows it, for errors.
        kind: From `data.layout.sample_key`.
        classes: Declared classes; without them outlines and boxes may name any class, and masks
            are binary.
        file: Where the file lies, relative to the storage root; a mask's labels name it.
        sha256: Of ``raw``.
        frame_size: Width and height of its frame, None if that is not there yet. Only YOLO and
            DeepPCB files need it; whether the others fit their frame is the caller's to check.
        numbered: What the numbers in YOLO files stand for, as ``data.yaml`` says; None takes
            ``classes``.
        class_name: Of everything that a mask marks; None reads an index mask.
        keep_mask: Keeps the index mask that is made of a mask with a ``class_name``.
        limits: Bounds on a mask's size.

    Raises:
        LabelError: With the place of the first thing that can't be meant.
        ImageError: A mask that can't be decoded.
    """
    _refuse_many_frames(raw, name, kind)
    if kind == "labelme":
        document = read_labelme(raw, name=name, classes=classes)
        labels: Labels = labels_from_polygons(document.polygons)
        return LabelFile(document.width, document.height, labels)
    if kind == "voc":
        annotation = read_voc(raw, name=name, classes=classes)
        return LabelFile(annotation.width, annotation.height, labels_from_boxes(annotation.boxes))
    if kind == "yolo":
        return _read_yolo(raw, name, numbered or classes, frame_size)
    if kind == "deeppcb":
        return _read_deeppcb(raw, name, classes, frame_size)
    if class_name is not None:
        alone = ClassMaskFile(name, class_name, lambda: raw)
        return read_class_masks([alone], classes, keep_mask, limits)
    mask = _read_mask(raw, name, classes, limits)
    return LabelFile(mask.shape[1], mask.shape[0], labels_from_mask(mask, file=file, sha256=sha256))


def _refuse_many_frames(raw: bytes, name: str, kind: LabelKind) -> None:
    if (kind == "labelme" and looks_like_coco(raw)) or (kind == "voc" and looks_like_cvat(raw)):
        raise LabelError(
            "label_of_many_frames",
            "The file holds the labels of many frames, and the label of one was expected.",
            file=name,
            where="whole file",
            hint="Upload it into a data set, where it finds its frames.",
        )


def _read_deeppcb(
    raw: bytes, name: str, classes: Sequence[str] | None, frame_size: tuple[int, int] | None
) -> LabelFile:
    width, height = _required(frame_size, name)
    boxes = read_deeppcb(raw, name=name, classes=classes, width=width, height=height)
    return LabelFile(width, height, boxes)


def _read_yolo(
    raw: bytes, name: str, classes: Sequence[str] | None, frame_size: tuple[int, int] | None
) -> LabelFile:
    if classes is None:
        raise LabelError(
            "label_classes_needed",
            "The file numbers its classes, and the data set declares none.",
            file=name,
            where="whole file",
            hint="Create the data set with its classes, in the order of data.yaml, or import the "
            "archive that holds data.yaml.",
        )
    width, height = _required(frame_size, name)
    labels = read_yolo(raw, name=name, classes=classes, width=width, height=height)
    return LabelFile(width, height, labels)


def _required(frame_size: tuple[int, int] | None, name: str) -> tuple[int, int]:
    if frame_size is None:
        raise LabelError(
            "label_frame_needed",
            "The file does not say how large its frame is, and the frame has not arrived.",
            file=name,
            where="whole file",
            hint="Upload the frame first, or both together.",
        )
    return frame_size


def read_class_masks(
    files: Sequence[ClassMaskFile],
    classes: Sequence[str] | None,
    keep_mask: KeepMask | None,
    limits: PixelLimits = DEFAULT_LIMITS,
) -> LabelFile:
    """Read a frame's masks, each of one class, as one index mask that is kept.

    Args:
        files: At least one.
        classes: Declared classes.
        keep_mask: Keeps the index mask that is made.
        limits: Bounds on a mask's size.

    Raises:
        LayoutError: Two files are of one class.
        LabelError: See `merge_class_masks`; a class is not declared (``unknown_class``), or
            ``keep_mask`` is None (``mask_store_needed``).
        ImageError: A mask that can't be decoded.
    """
    for mask in files:
        if mask.class_name not in (classes or ()):
            raise unknown_class(mask.class_name, classes or ["(none declared)"], file=mask.name)
    if keep_mask is None:
        raise LabelError(
            "mask_store_needed",
            "The mask marks one class and must be kept as an index mask, and no place is given.",
            file=files[0].name,
            hint="Pass store_mask, or import the archive into the service.",
        )
    merged = merge_class_masks(files, classes=classes or (), limits=limits)
    made = encode_mask(merged)
    labels = labels_from_mask(merged, file=keep_mask(made), sha256=sha256_hex(made))
    return LabelFile(merged.shape[1], merged.shape[0], labels)


def _read_mask(
    raw: bytes, name: str, classes: Sequence[str] | None, limits: PixelLimits
) -> NDArray[np.uint8]:
    try:
        return read_mask(raw, name=name, classes=classes or [UNDECLARED_MASK_CLASS], limits=limits)
    except LabelError as error:
        if classes is not None or error.code != "mask_value":
            raise
        raise LabelError(
            error.code,
            f"{error.detail} The data set declares no classes, so masks hold one.",
            file=error.file,
            where=error.where,
            hint="Create the data set with its classes, in the order of the masks' values.",
        ) from error
