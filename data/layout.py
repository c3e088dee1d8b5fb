"""Which files belong together: names decide, never a file's place in an upload."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from data.errors import LayoutError

PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})

# The last is Pascal VOC's.
_IMAGE_FOLDERS = frozenset({"images", "image", "data", "img", "imgs", "jpegimages"})
_MASK_FOLDERS = frozenset({"masks", "mask", "ground_truth"})
_LABEL_FOLDERS = _MASK_FOLDERS | {"label", "labels", "annotations", "json", "xml"}

_ANNOTATION_KINDS: dict[str, Literal["labelme", "voc"]] = {".json": "labelme", ".xml": "voc"}

SampleKind = Literal["image", "mask", "labelme", "voc", "yolo", "deeppcb"]

# labelImg writes the names of the classes beside YOLO labels.
_CLASS_LIST = "classes"

# What YOLO tools, and our export, keep beside frames and labels: the classes by number, and the
# frames of each split.
_YOLO_LISTS = frozenset({"data.yaml", "train.txt", "val.txt", "test.txt"})

_MAX_NAME_BYTES = 255

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# Half of a pair: UTF-8 has no bytes for it.
_SURROGATE = re.compile(r"[\ud800-\udfff]")


@dataclass(frozen=True)
class SampleKey:
    """What a file is, and the key it shares with its partner.

    Attributes:
        kind: A picture, its index mask, or its annotation file.
        key: Equal for a picture and its label.
        class_name: Of a mask whose every marked pixel is of one class, which its folder or its own
            name says.
        is_good: Whether a picture's folder declares it free of defects.
    """

    kind: SampleKind
    key: str
    class_name: str | None = None
    is_good: bool = False


def sample_key(path: str) -> SampleKey:
    """Return what a file is by its name, and the key that pairs a picture with its label.

    The key is the path without its suffix and without the one folder (the nearest to the file)
    that only says what lies in it: ``data/train/images/a.jpg`` and ``data/train/masks/a_mask.png``
    share ``data/train/a``.  A label that lies beside its picture, as LabelMe writes it, drops the
    picture's folder instead.

    Args:
        path: A name as `clean_name` returns it.

    Raises:
        LayoutError: The suffix is neither a picture's nor ``.json`` nor ``.xml``, nor ``.txt`` in a
            label folder; a text elsewhere is more often a README.
    """
    pure = PurePosixPath(path)
    suffix = pure.suffix.lower()
    folders = list(pure.parts[:-1])
    stem = pure.stem
    if suffix in _ANNOTATION_KINDS:
        return SampleKey(_ANNOTATION_KINDS[suffix], _join(_drop_label_folder(folders), stem))
    is_in_label_folder = any(folder.lower() in _LABEL_FOLDERS for folder in folders)
    if suffix == ".txt" and is_in_label_folder and stem.lower() != _CLASS_LIST:
        return SampleKey("yolo", _join(_drop_label_folder(folders), stem))
    if suffix not in PICTURE_SUFFIXES:
        raise LayoutError(
            "unsupported_file",
            f"The suffix {suffix!r} is neither a picture's nor an annotation file's.",
            file=path,
            hint="Upload .jpg, .png, .bmp, .tif or .webp pictures, with .json (LabelMe), .xml "
            "(Pascal VOC), labels/….txt (YOLO) or mask .png.",
        )
    is_mask = stem.lower().endswith("_mask")
    if is_mask or is_in_label_folder:
        # A stem that is nothing but `_mask` would leave an empty key.
        stem = stem[: -len("_mask")] or stem if is_mask else stem
        return SampleKey("mask", _join(_drop_label_folder(folders), stem))
    return SampleKey("image", _join(_drop_nearest(folders, _IMAGE_FOLDERS), stem))


def is_frame(path: str) -> bool:
    """Tell whether a file is a frame by its name; False also for names that are refused.

    Frames go before labels wherever files are taken in, because some labels need their frame.
    """
    try:
        return sample_key(path).kind == "image"
    except LayoutError:
        return False


def is_yolo_list(path: str) -> bool:
    """Tell whether a file only says how a YOLO set is divided; `labels/train.txt` is a label."""
    try:
        sample_key(path)
    except LayoutError:
        return path.rpartition("/")[2] in _YOLO_LISTS
    return False


def label_folder_index(folders: Sequence[str]) -> int | None:
    """Return which folder only says that labels lie in it, the nearest to the file."""
    return _nearest(folders, _LABEL_FOLDERS)


def _drop_label_folder(folders: list[str]) -> list[str]:
    dropped = _drop_nearest(folders, _LABEL_FOLDERS)
    return dropped if len(dropped) < len(folders) else _drop_nearest(folders, _IMAGE_FOLDERS)


def _drop_nearest(folders: list[str], names: frozenset[str]) -> list[str]:
    index = _nearest(folders, names)
    return folders if index is None else folders[:index] + folders[index + 1 :]


def _nearest(folders: Sequence[str], names: frozenset[str]) -> int | None:
    for index in range(len(folders) - 1, -1, -1):
        if folders[index].lower() in names:
            return index
    return None


def _join(folders: list[str], stem: str) -> str:
    return "/".join([*folders, stem])


def clean_name(path: str) -> str:
    """Return a safe relative POSIX name, or refuse the path.

    ``.`` components and doubled slashes are dropped; nothing else is repaired, because two
    different names must never become one.

    Raises:
        LayoutError: ``unsafe_name``: the path is absolute, climbs with ``..``, is empty or too
            long, or holds a backslash, a control character or text that is no Unicode.
    """
    parts = [part for part in path.split("/") if part not in ("", ".")]
    reason = None
    if not parts:
        reason = "is empty"
    elif path.startswith("/") or re.match(r"[A-Za-z]:", parts[0]):
        reason = "is absolute"
    elif ".." in parts:
        reason = "leaves its folder with '..'"
    elif "\\" in path:
        reason = "holds a backslash"
    elif _CONTROL.search(path):
        reason = "holds a control character"
    elif _SURROGATE.search(path):
        reason = "is no valid Unicode"
    elif len("/".join(parts).encode()) > _MAX_NAME_BYTES:
        reason = f"is longer than {_MAX_NAME_BYTES} bytes"
    if reason is not None:
        raise LayoutError(
            "unsafe_name",
            f"The file name {reason}.",
            file=path.encode("unicode_escape").decode()[:300],
            hint="Rename the file; use a relative path with forward slashes.",
        )
    return "/".join(parts)
