"""Masks of one file a class: ``masks/<class>/x.png`` or ``masks/x_<class>.png`` for frame ``x``.

Names alone can't tell a folder of a class from one of a lot, so what a file is depends on which
frames there are and which classes are declared.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from data.errors import LabelError, LayoutError
from data.layout import SampleKey, label_folder_index, sample_key
from data.limits import DEFAULT_LIMITS, PixelLimits
from data.masks import read_class_mask

_PARTING = re.compile(r"[_-]")


@dataclass(frozen=True)
class ClassMaskName:
    """What a file's name says, if it is a mask of one class.

    Attributes:
        class_name: The folder's name, or the end of the file's.
        place: The folder or the file, for errors.
        key: Of its frame.
        is_folder: Whether a folder names the class.
    """

    class_name: str
    place: str
    key: str
    is_folder: bool


@dataclass(frozen=True)
class ClassMasks:
    """Which files are masks of one class, among certain frames.

    Attributes:
        frames: Keys of the frames.
        classes: That are declared.
        is_named: Whether the caller named the layout: also files beside frames, and those without
            a frame, are then taken for such masks.
    """

    frames: frozenset[str] = field(repr=False)
    classes: tuple[str, ...]
    is_named: bool = False

    def sample(self, name: str) -> SampleKey | None:
        """Return what a file is, None if it is neither a frame nor a mask of a declared class.

        Raises:
            LayoutError: ``unsupported_file``.
        """
        sample = sample_key(name)
        found = self._find(name, sample)
        if found is not None and found.class_name in self.classes:
            return SampleKey("mask", found.key, class_name=found.class_name)
        return sample if sample.kind == "image" else None

    def files(self, names: Sequence[str]) -> list[str]:
        """Return the masks of one class, also of undeclared ones; none if nothing shows it.

        A name shows it where its frame is there under the name without the class.
        """
        found = []
        is_shown = self.is_named
        for name in names:
            mask = self._find_mask(name)
            if mask is None:
                continue
            is_declared = mask.class_name in self.classes
            has_frame = mask.key in self.frames
            if self.is_named or is_declared or has_frame:
                found.append(name)
            # The end of a name may be anything; only a declared class makes it one.
            is_shown = is_shown or (has_frame and (is_declared or mask.is_folder))
        return found if is_shown else []

    def check(self, names: Sequence[str], file: str | None) -> None:
        """Refuse masks of classes that are not declared.

        Args:
            names: Every file.
            file: The folder or archive, for errors.

        Raises:
            LayoutError: ``classes_needed``: none is declared.
            LabelError: ``unknown_class``: a folder or the end of a name is none of them.
        """
        if not self.classes:
            raise LayoutError(
                "classes_needed",
                "There is a mask file a class, and no classes are declared.",
                file=file,
                hint="Declare the classes, as the folders or the ends of the files' names say "
                "them.",
            )
        for name in names:
            mask = self._find_mask(name)
            if mask is None or mask.class_name in self.classes:
                continue
            if self.is_named or mask.key in self.frames:
                what = "folder" if mask.is_folder else "end of the file's name"
                raise LabelError(
                    "unknown_class",
                    f"The {what}, {mask.class_name!r}, is none of the declared classes "
                    f"{', '.join(self.classes)}.",
                    file=mask.place,
                    where="file name",
                    hint="Rename it, leave it out, or create the data set with this class.",
                )

    def _find_mask(self, name: str) -> ClassMaskName | None:
        try:
            return self._find(name, sample_key(name))
        except LayoutError:
            return None

    def _find(self, name: str, sample: SampleKey) -> ClassMaskName | None:
        if sample.kind == "mask" and sample.key not in self.frames:
            candidates = class_mask_names(name)
            with_frame = [found for found in candidates if found.key in self.frames]
            declared = [found for found in candidates if found.class_name in self.classes]
            both = [found for found in with_frame if found in declared]
            return next(iter(both + with_frame + declared + candidates), None)
        if sample.kind == "image" and self.is_named:
            for found in class_mask_names(name):
                if found.class_name in self.classes and found.key in self.frames:
                    return found
        return None


def class_mask_names(name: str) -> list[ClassMaskName]:
    """Return every way to read a picture's name as that of a mask of one class.

    Folders below the label folder come first, then ends of the name, the longest first.

    Args:
        name: As `clean_name` returns it.
    """
    *folders, stem = sample_key(name).key.split("/")
    parts = PurePosixPath(name).parts
    label_folder = label_folder_index(parts[:-1])
    found = []
    for index in range(len(folders) if label_folder is None else label_folder, len(folders)):
        key = "/".join([*folders[:index], *folders[index + 1 :], stem])
        # The name has one folder more than the key: the label folder itself.
        place = "/".join(parts[: index + 2])
        found.append(ClassMaskName(folders[index], place, key, is_folder=True))
    for parting in _PARTING.finditer(stem):
        before, after = stem[: parting.start()], stem[parting.end() :]
        if before and after:
            key = "/".join([*folders, before])
            found.append(ClassMaskName(after, name, key, is_folder=False))
    return found


@dataclass(frozen=True)
class ClassMaskFile:
    """One of a frame's masks.

    Attributes:
        name: As the user knows it, for errors.
        class_name: Of what it marks.
        read: Returns its bytes.
    """

    name: str
    class_name: str
    read: Callable[[], bytes]


def merge_class_masks(
    files: Sequence[ClassMaskFile],
    *,
    classes: Sequence[str],
    limits: PixelLimits = DEFAULT_LIMITS,
) -> NDArray[np.uint8]:
    """Return one index mask of a frame's masks; a class without a file is not marked.

    Args:
        files: At least one, whose every marked pixel (1 or 255) is of its class.
        classes: The data set's classes, in order.
        limits: Bounds on a mask's size.

    Returns:
        (H, W) uint8 of 0 and the classes' values.

    Raises:
        LayoutError: ``duplicate_label``: two files are of one class.
        LabelError: See `read_mask`; ``label_size_mismatch``: two files differ in size;
            ``mask_overlap``: two files mark one pixel.
        ImageError: A file can't be decoded.
    """
    merged: NDArray[np.uint8] | None = None
    seen: dict[str, str] = {}
    for file in files:
        if file.class_name in seen:
            raise LayoutError(
                "duplicate_label",
                f"The frame has another mask of the class {file.class_name}: "
                f"{seen[file.class_name]}.",
                file=file.name,
                hint="Keep the one that is right.",
            )
        raw = file.read()
        mask = read_class_mask(
            raw, name=file.name, class_name=file.class_name, classes=classes, limits=limits
        )
        if merged is None:
            merged = mask
        else:
            _add(merged, mask, file, seen, classes)
        seen[file.class_name] = file.name
    assert merged is not None  # The caller has brought a file.
    return merged


def _add(
    merged: NDArray[np.uint8],
    mask: NDArray[np.uint8],
    file: ClassMaskFile,
    seen: dict[str, str],
    classes: Sequence[str],
) -> None:
    if mask.shape != merged.shape:
        first = next(iter(seen.values()))
        raise LabelError(
            "label_size_mismatch",
            f"The mask has {mask.shape[1]}x{mask.shape[0]} px, {first} of the same frame has "
            f"{merged.shape[1]}x{merged.shape[0]} px.",
            file=file.name,
            hint="Export the frame's masks again, all of its size; labels are never rescaled.",
        )
    twice = (merged != 0) & (mask != 0)
    if twice.any():
        y, x = np.unravel_index(int(twice.argmax()), twice.shape)
        other = seen[classes[int(merged[y, x]) - 1]]
        raise LabelError(
            "mask_overlap",
            f"The pixel is marked in {other} too, and an index mask holds one class a pixel.",
            file=file.name,
            where=f"pixel (x={x}, y={y})",
            hint="Correct the masks so that classes do not overlap.",
        )
    merged |= mask


def mask_part_refused(name: str, at_fault: str) -> LabelError:
    """Return the error for a mask that is right and whose frame has another that is not."""
    return LabelError(
        "mask_part_refused",
        f"Another mask of the frame was refused, {at_fault}, and half of a label is none.",
        file=name,
        hint="Correct that one and send all of the frame's masks again.",
    )


def refuse_single_mask(name: str, classes: Sequence[str], has_frame: Callable[[str], bool]) -> None:
    """Refuse a mask that pairs with no frame, but would as a mask of one class.

    Args:
        name: As `clean_name` returns it.
        classes: That are declared.
        has_frame: Tells whether there is a frame of a key.

    Raises:
        LabelError: ``mask_of_one_class``.
    """
    for found in class_mask_names(name):
        if found.class_name in classes and has_frame(found.key):
            raise LabelError(
                "mask_of_one_class",
                f"The mask's name says that it marks {found.class_name}, and a frame's masks of "
                "one class each are merged only when they come together.",
                file=name,
                where="file name",
                hint="Pack them into an archive and import it with the layout class_masks, or "
                "upload an index mask.",
            )
