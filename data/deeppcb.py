"""DeepPCB (https://github.com/tangsanli5201/DeepPCB): pairs of pictures and boxes in pixels.

``12000/12000001_test.jpg`` is the frame and ``12000_not/12000001.txt`` its boxes.  The third file,
``12000001_temp.jpg``, is the cleaned picture that the frame is compared with: a reference and not
a board that came off the line, so it is no frame.
"""

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from data.errors import LabelError
from data.labels import Box, BoxLabels, GoodFrame, labels_from_boxes, unknown_class
from data.layout import PICTURE_SUFFIXES, SampleKey
from data.text_lines import TextLine, text_lines

# The numbers of its README; 0 is the background and not used.
DEEPPCB_CLASSES = ("open", "short", "mousebite", "spur", "copper", "pin-hole")

_LABEL_FOLDER = "_not"
_COLUMNS = 5


def deeppcb_sample(path: str) -> SampleKey | None:
    """Return what a file of a DeepPCB set is, None if it is neither frame nor label."""
    pure = PurePosixPath(path)
    *folders, folder = pure.parts[:-1] or ("",)
    if pure.suffix.lower() == ".txt" and folder.endswith(_LABEL_FOLDER):
        pictures = folder.removesuffix(_LABEL_FOLDER)
        return SampleKey("deeppcb", "/".join([*folders, pictures, pure.stem]))
    if pure.suffix.lower() in PICTURE_SUFFIXES and pure.stem.endswith("_test"):
        return SampleKey("image", "/".join([*pure.parts[:-1], pure.stem.removesuffix("_test")]))
    return None


def is_deeppcb_template(path: str) -> bool:
    """Tell whether a file is the picture that a frame is compared with."""
    pure = PurePosixPath(path)
    return pure.suffix.lower() in PICTURE_SUFFIXES and pure.stem.endswith("_temp")


def read_deeppcb(
    raw: bytes, *, name: str, classes: Sequence[str] | None, width: int, height: int
) -> GoodFrame | BoxLabels:
    """Read a DeepPCB file: ``x1 y1 x2 y2 type`` a line, corners in pixels, types from 1.

    The columns are parted by blanks, as in the files, or by commas, as in their README. A file
    without a line declares a good frame.

    Args:
        raw: The whole file, UTF-8.
        name: The file as the user knows it, for errors.
        classes: Allowed class names; None allows those of `DEEPPCB_CLASSES`.
        width: Of the frame, in pixels.
        height: Of the frame, in pixels.

    Raises:
        LabelError: With the line of the first value that can't be meant.
    """
    boxes = [
        _read_box(line, classes, width, height)
        for line in text_lines(raw, name=name)
        if line.text.strip()
    ]
    return labels_from_boxes(boxes)


def _read_box(line: TextLine, classes: Sequence[str] | None, width: int, height: int) -> Box:
    columns = line.text.replace(",", " ").split()
    # Plain digits: int() would also take "1_0" and other alphabets' numerals.
    wrong = [text for text in columns if not re.fullmatch(r"[0-9]{1,6}", text)]
    if len(columns) != _COLUMNS or wrong:
        found = f"{wrong[0][:40]!r} is none" if wrong else f"this one has {len(columns)}"
        raise line.error(
            "label_field_type",
            f"A line is five whole numbers, x1 y1 x2 y2 type; {found}.",
            "Correct the line, or delete it.",
        )
    left, top, right, bottom, number = (int(text) for text in columns)
    class_name = _class_name(line, number, classes)
    if left >= right or top >= bottom:
        raise line.error(
            "box_empty",
            f"The box from ({left}, {top}) to ({right}, {bottom}) ends before it begins.",
            "Correct the corners, or delete the line.",
        )
    if right > width or bottom > height:
        raise line.error(
            "box_outside_frame",
            f"The box reaches to ({right}, {bottom}), the frame to ({width}, {height}).",
            "Move the box inside, or upload the picture it was drawn on.",
        )
    return Box(class_name, left, top, right - left, bottom - top)


def _class_name(line: TextLine, number: int, classes: Sequence[str] | None) -> str:
    if not 1 <= number <= len(DEEPPCB_CLASSES):
        listed = ", ".join(f"{index} {name}" for index, name in enumerate(DEEPPCB_CLASSES, 1))
        raise line.error(
            "unknown_class",
            f"The type {number} is none of {listed}.",
            "Correct the type.",
        )
    class_name = DEEPPCB_CLASSES[number - 1]
    if classes is not None and class_name not in classes:
        raise _unknown(class_name, classes, line)
    return class_name


def _unknown(class_name: str, classes: Sequence[str], line: TextLine) -> LabelError:
    return unknown_class(class_name, classes, file=line.file, where=line.where)
