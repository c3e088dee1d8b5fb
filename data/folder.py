"""Importing a folder in place: label files beside or parallel to pictures."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from data.bayer import BayerPattern, decode_frame
from data.class_masks import ClassMaskFile
from data.errors import DataError, LabelError, LayoutError
from data.headers import ImageHeader, read_header
from data.items import Item
from data.label_files import (
    UNDECLARED_MASK_CLASS,
    LabelFile,
    LabelKind,
    read_class_masks,
    read_label_file,
)
from data.labels import GoodFrame, Labels, check_labels_fit, named_classes
from data.layout import clean_name
from data.limits import DEFAULT_LIMITS, PixelLimits
from data.masks import KeepMask
from data.recognition import (
    PAIRED_BY_NAME,
    Layout,
    LayoutName,
    check_classes,
    files_to_look_into,
    recognize_layout,
)
from data.storage import sha256_hex

Unlabelled = Literal["reject", "good", "exclude"]

# What operating systems and archivers leave in folders.
_LITTER = frozenset({"thumbs.db", "desktop.ini", "__macosx"})


@dataclass(frozen=True)
class FolderImport:
    """What a folder holds.

    Attributes:
        items: The good frames, sorted by name, without group and split.
        classes: As given, or as found.
        problems: One error a file that was not taken.
        ignored: Files that are neither pictures nor labels, such as a README.
        excluded: Unlabelled pictures that were left out because the caller said so.
        layout: As recognized or named, with its evidence.
    """

    items: tuple[Item, ...]
    classes: tuple[str, ...]
    problems: tuple[DataError, ...]
    ignored: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    layout: Layout = PAIRED_BY_NAME


@dataclass(frozen=True)
class _Label:
    """A label file: its name, its format and, of a mask of one class, that class."""

    name: str
    kind: LabelKind
    class_name: str | None


@dataclass(frozen=True)
class _Reading:
    """How label files are read."""

    folder: Path
    prefix: str
    classes: tuple[str, ...] | None = None
    numbered: tuple[str, ...] | None = None
    store_mask: KeepMask | None = None
    limits: PixelLimits = DEFAULT_LIMITS

    def read(self, label: _Label, frame_size: tuple[int, int] | None = None) -> LabelFile:
        """Return what a label file says."""
        raw = _read(self.folder, label.name)
        return read_label_file(
            raw,
            name=label.name,
            kind=label.kind,
            classes=self.classes,
            numbered=self.numbered,
            class_name=label.class_name,
            keep_mask=self.store_mask,
            file=self.prefix + label.name,
            sha256=sha256_hex(raw),
            frame_size=frame_size,
            limits=self.limits,
        )

    def read_class_masks(self, labels: Sequence[_Label]) -> LabelFile:
        """Return what a frame's masks of one class each say together."""
        files = [
            ClassMaskFile(label.name, label.class_name, partial(_read, self.folder, label.name))
            for label in labels
            if label.class_name is not None
        ]
        return read_class_masks(files, self.classes or (), self.store_mask, self.limits)


@dataclass
class _Files:
    """A folder's files by what they are: {key: names}."""

    images: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    labels: dict[str, list[_Label]] = field(default_factory=lambda: defaultdict(list))
    good: set[str] = field(default_factory=set)
    ignored: list[str] = field(default_factory=list)
    problems: list[DataError] = field(default_factory=list)


def import_folder(
    folder: Path,
    *,
    classes: Sequence[str] | None = None,
    unlabelled: Unlabelled = "reject",
    layout: LayoutName | None = None,
    bayer: BayerPattern | None = None,
    root: Path | None = None,
    store_mask: KeepMask | None = None,
    limits: PixelLimits = DEFAULT_LIMITS,
) -> FolderImport:
    """Read a data set where it lies; every picture and label is decoded once.

    Args:
        folder: Searched with its subfolders; hidden files are skipped.
        classes: None takes the class names in the label files in alphabetical order; masks have
            one class then, ``defect``.
        unlabelled: What a picture without label is: a problem (``missing_label``), a good frame,
            or left out.
        layout: None recognizes it.
        bayer: The pattern if the pictures are raw mosaics; give it to the `Manifest` too.
        root: What items' paths are relative to; ``folder`` if None.
        store_mask: Keeps an index mask that had to be made of another and returns its path relative
            to ``root``; without it MVTec's masks, and those of one class each, are problems
            (``mask_store_needed``).
        limits: Bounds on a picture's size.

    Raises:
        LayoutError: The folder is missing, outside ``root`` or holds no picture at all, or it
            mixes masks with other label files, or holds YOLO files or masks of one class each,
            without naming the classes; or its layout is ambiguous or not the one that is named.
        LabelError: Its ``data.yaml`` or a mask's name is wrong or names other classes.
    """
    root = folder if root is None else root
    prefix = _prefix(folder, root)
    recognized = _recognize(folder, layout, classes)
    check_classes(recognized, classes)
    files = _sort_files(folder, recognized)
    found = tuple(classes or recognized.fixed_classes or _find_classes(folder, files))
    reading = _Reading(folder, prefix, found, recognized.numbered, store_mask, limits)
    reader = _SampleReader(reading, unlabelled, files.good, bayer)
    items, problems = _read_samples(files, reader)
    for labels in files.labels.values():
        problems += [_orphan(label.name) for label in labels]
    return FolderImport(
        items=tuple(sorted(items, key=lambda item: item.name)),
        classes=found,
        problems=tuple(sorted(problems, key=lambda error: error.file or "")),
        ignored=tuple(files.ignored),
        excluded=tuple(reader.excluded),
        layout=recognized,
    )


def _read_samples(files: _Files, reader: "_SampleReader") -> tuple[list[Item], list[DataError]]:
    """Read every picture with its labels, which are taken out of ``files``."""
    items = []
    problems = list(files.problems)
    for key, names in sorted(files.images.items()):
        try:
            item = reader.read(key, names, files.labels.pop(key, []))
        except DataError as error:
            problems.append(error)
        else:
            items += [item] if item is not None else []
    return items, problems


def _prefix(folder: Path, root: Path) -> str:
    if not folder.is_dir():
        raise LayoutError(
            "folder_missing",
            "There is no such folder.",
            file=str(folder),
            hint="Check the path; on a server it is the server's path.",
        )
    try:
        relative = folder.resolve().relative_to(root.resolve()).as_posix()
    except ValueError as error:
        raise LayoutError(
            "folder_outside_root",
            f"The folder does not lie under {root}.",
            file=str(folder),
            hint="Import a folder below the storage root.",
        ) from error
    return "" if relative == "." else relative + "/"


def _walk(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        parts = name.lower().split("/")
        if any(part.startswith(".") or part in _LITTER for part in parts):
            continue
        if path.is_file():
            yield name


def _recognize(folder: Path, named: LayoutName | None, declared: Sequence[str] | None) -> Layout:
    names = list(_walk(folder))
    contents = {name: _read(folder, name) for name in files_to_look_into(names)}
    return recognize_layout(names, contents, named=named, declared=declared, file=str(folder))


def _sort_files(folder: Path, layout: Layout) -> _Files:
    files = _Files()
    for name in _walk(folder):
        try:
            clean_name(name)
        except LayoutError as error:
            files.problems.append(error)
            continue
        try:
            sample = layout.sample(name)
        except LayoutError:
            sample = None
        if sample is None:
            files.ignored.append(name)
            continue
        if sample.kind == "image":
            files.images[sample.key].append(name)
            files.good |= {sample.key} if sample.is_good else set()
        else:
            files.labels[sample.key].append(_Label(name, sample.kind, sample.class_name))
    if not files.images:
        raise LayoutError(
            "no_images",
            "The folder holds no .jpg, .png, .bmp, .tif or .webp picture.",
            file=str(folder),
            hint="Name the folder that contains the pictures, or their parent.",
        )
    return files


def _find_classes(folder: Path, files: _Files) -> tuple[str, ...]:
    kinds = {label.kind for labels in files.labels.values() for label in labels}
    if "yolo" in kinds or ("mask" in kinds and len(kinds) > 1):
        raise LayoutError(
            "classes_needed",
            "The folder holds YOLO files, or masks beside other label files, and which number "
            "stands for which class can't be told from it.",
            file=str(folder),
            hint="Name the classes, in the order of data.yaml or of the masks' values.",
        )
    found: set[str] = set()
    for labels in files.labels.values() if "mask" not in kinds else ():
        for label in labels:
            try:
                found |= named_classes(_Reading(folder, "").read(label).labels)
            except DataError:
                # Reading it again with its picture reports it.
                continue
    return tuple(sorted(found)) or (UNDECLARED_MASK_CLASS,)


def _read(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise LayoutError(
            "file_unreadable",
            f"The file can't be read: {error.strerror}.",
            file=name,
            hint="Check the disk and the file's permissions.",
        ) from error


def _orphan(name: str) -> LabelError:
    return LabelError(
        "label_without_image",
        "No picture belongs to this label.",
        file=name,
        hint="Add the picture of the same name, or remove the label.",
    )


class _SampleReader:
    """Reads a picture with its label, and remembers which pictures it has seen."""

    def __init__(
        self,
        reading: _Reading,
        unlabelled: Unlabelled,
        good: set[str],
        bayer: BayerPattern | None,
    ) -> None:
        self._reading = reading
        self._unlabelled = unlabelled
        self._good = good
        self._bayer = bayer
        self._seen: dict[str, str] = {}
        self.excluded: list[str] = []

    def read(self, key: str, names: Sequence[str], labels: Sequence[_Label]) -> Item | None:
        """Return the sample, or None if it is to be left out."""
        name = names[0]
        if len(names) > 1 or any(label.class_name is None for label in labels[1:]):
            _refuse_ambiguity(names, [label.name for label in labels])
        if not labels and key not in self._good and self._unlabelled == "exclude":
            self.excluded.append(name)
            return None
        raw = _read(self._reading.folder, name)
        header = read_header(raw, name=name)
        limits = self._reading.limits
        pixels = decode_frame(raw, name=name, bayer=self._bayer, limits=limits).pixels
        digest = sha256_hex(raw)
        if digest in self._seen:
            raise LayoutError(
                "duplicate_image",
                f"The picture is the same as {self._seen[digest]}, byte for byte.",
                file=name,
                hint="Keep one: a picture in two splits would be both learned and judged.",
            )
        self._seen[digest] = name
        return Item(
            name=name,
            key=key,
            file=self._reading.prefix + name,
            sha256=digest,
            width=header.width,
            height=header.height,
            channels=1 if pixels.ndim == 2 else 3,
            bit_depth=header.bit_depth,
            group=None,
            split=None,
            labels=self._read_labels(name, key, labels, header),
        )

    def _read_labels(
        self, image: str, key: str, labels: Sequence[_Label], header: ImageHeader
    ) -> Labels:
        if not labels:
            if self._unlabelled == "good" or key in self._good:
                return GoodFrame()
            raise missing_label(image)
        if labels[0].class_name is None:
            read = self._reading.read(labels[0], (header.width, header.height))
        else:
            read = self._reading.read_class_masks(labels)
        check_labels_fit((read.width, read.height), header, labels[0].name)
        return read.labels


def missing_label(image: str) -> LabelError:
    """Return the error for a picture that nobody has labelled or declared good."""
    return LabelError(
        "missing_label",
        "The picture has no label.",
        file=image,
        hint="Upload its mask or annotation file, or declare unlabelled='good' or 'exclude'.",
    )


def _refuse_ambiguity(names: Sequence[str], labels: Sequence[str]) -> None:
    if len(names) > 1:
        raise LayoutError(
            "duplicate_key",
            f"{' and '.join(names)} would share one label.",
            file=names[0],
            hint="Give each picture a name of its own.",
        )
    raise LayoutError(
        "duplicate_label",
        f"The picture has {len(labels)} labels: {', '.join(labels)}.",
        file=names[0],
        hint="Keep the one that is right.",
    )
