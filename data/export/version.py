"""Which files an export consists of, and whether its format can hold the version."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from data.errors import DataError, LabelError
from data.export.coco import COCO_NAME, write_coco
from data.export.labelme import labelme_name, write_labelme
from data.export.tar import ExportedFile
from data.export.voc import voc_name, write_voc
from data.export.yolo import write_data_yaml, write_lists, write_yolo, yolo_name
from data.items import Item
from data.label_files import LabelFile, LabelKind, read_label_file
from data.labels import BoxLabels, MaskLabels, PolygonLabels
from data.layout import SampleKey, clean_name, sample_key
from data.manifest import Manifest
from data.storage import file_missing, read_verified

ExportFormat = Literal["coco", "labelme", "masks", "voc", "yolo"]
EXPORT_FORMATS: tuple[ExportFormat, ...] = get_args(ExportFormat)

# What each format holds besides good frames; the first that fits is recommended.
_HOLDS: dict[ExportFormat, tuple[type, ...]] = {
    "coco": (PolygonLabels, BoxLabels),
    "masks": (MaskLabels,),
    "labelme": (PolygonLabels,),
    "voc": (BoxLabels,),
    "yolo": (PolygonLabels, BoxLabels),
}


@dataclass(frozen=True)
class _FrameFormat:
    """A format of one label file a frame.

    Attributes:
        kind: What such a file is by its name.
        name: Of a frame's label file.
        write: Yields the file, from the most readable to the most exact way of writing it.
    """

    kind: LabelKind
    name: Callable[[Item], str]
    write: Callable[[Item, Sequence[str]], Iterable[bytes]]


_FRAME_FORMATS: dict[ExportFormat, _FrameFormat] = {
    "labelme": _FrameFormat("labelme", labelme_name, write_labelme),
    "voc": _FrameFormat("voc", voc_name, write_voc),
    "yolo": _FrameFormat("yolo", yolo_name, write_yolo),
}


def export_files(manifest: Manifest, root: Path, form: ExportFormat) -> tuple[ExportedFile, ...]:
    """Return a version's frames under their names, then its labels.

    "coco" writes one `COCO_NAME` with every outline and box; "labelme" (outlines) and "voc"
    (boxes) a file beside each frame; "yolo" (both) a file in a ``labels`` folder for each frame,
    with ``data.yaml`` and a list of frames for each split; "masks" an index mask beside each frame.
    A good frame is there with a label that says so. Nothing is converted: each label file that is
    written is read again, and what does not come back to the last bit is refused.

    Args:
        manifest: The version.
        root: Storage root.
        form: The format.

    Raises:
        LabelError: ``export_unfit``: the format can't hold some labels, or can't pair some names.
        DataError: A stored file is gone.
    """
    _check_kinds(manifest, form)
    frames = (_stored(item.name, root, item.file, item.sha256) for item in manifest.items)
    return (*frames, *_labels(manifest, root, form))


def _labels(manifest: Manifest, root: Path, form: ExportFormat) -> Iterator[ExportedFile]:
    if form == "coco":
        yield _made(COCO_NAME, write_coco(manifest))
        return
    for item in manifest.items:
        if form == "masks":
            yield _mask(item, root)
        else:
            yield _label(item, manifest, form)
    if form == "yolo":
        yield _made("data.yaml", write_data_yaml(manifest))
        yield from (_made(name, content) for name, content in write_lists(manifest))


def _check_kinds(manifest: Manifest, form: ExportFormat) -> None:
    kinds = (PolygonLabels, BoxLabels, MaskLabels)
    present = {type(item.labels) for item in manifest.items}.intersection(kinds)
    unfit = [item.name for item in manifest.items if type(item.labels) in present - {*_HOLDS[form]}]
    if not unfit:
        return
    fitting = [other for other, held in _HOLDS.items() if present <= {*held}]
    raise LabelError(
        "export_unfit",
        f"{len(unfit)} frames have labels that {form!r} can't hold exactly.",
        file=unfit[0],
        hint=f"Export the version as {' or '.join(fitting)}; converted labels would not be the "
        "same."
        if fitting
        else "No format holds masks beside outlines or boxes; freeze a version of either kind.",
    )


def _label(item: Item, manifest: Manifest, form: ExportFormat) -> ExportedFile:
    """Return a frame's label file, which has been read and found to say the same."""
    writer = _FRAME_FORMATS[form]
    name = writer.name(item)
    _check_pairing(item, name, writer.kind, form)
    wanted = LabelFile(item.width, item.height, item.labels)
    for content in writer.write(item, manifest.classes):
        if _read_again(content, name, writer.kind, item, manifest.classes) == wanted:
            return _made(name, content)
    raise _unfit(
        item,
        f"A {form!r} file can't give back the frame's labels to the last bit: a class's name, or a "
        "shape outside the frame.",
        form,
    )


def _read_again(
    content: bytes, name: str, kind: LabelKind, item: Item, classes: Sequence[str]
) -> LabelFile | None:
    try:
        return read_label_file(
            content,
            name=name,
            kind=kind,
            classes=classes,
            file=name,
            sha256=item.sha256,
            frame_size=(item.width, item.height),
        )
    except DataError:
        return None


def _check_pairing(item: Item, name: str, kind: LabelKind, form: ExportFormat) -> None:
    """Refuse a frame that its label file would not find when both are imported."""
    try:
        pairs = clean_name(name) == name and sample_key(name) == SampleKey(kind, item.key)
    except DataError:
        pairs = False
    if not pairs:
        shown = name if len(name) <= 100 else f"{name[:97]}..."
        raise _unfit(item, f"Its label file would be called {shown}, which does not pair.", form)


def _unfit(item: Item, detail: str, form: ExportFormat) -> LabelError:
    holding = [other for other, held in _HOLDS.items() if isinstance(item.labels, held)]
    others = " or ".join(other for other in holding if other != form)
    hint = (
        f"Export the version as {others}." if others else "Upload the frame under a shorter name."
    )
    return LabelError("export_unfit", detail, file=item.name, hint=hint)


def _stored(name: str, root: Path, file: str, sha256: str) -> ExportedFile:
    try:
        size = (root / file).stat().st_size
    except OSError as error:
        raise file_missing(root, name) from error
    return ExportedFile(name, size, partial(read_verified, root, file, sha256))


def _made(name: str, content: bytes) -> ExportedFile:
    return ExportedFile(name, len(content), lambda: content)


def _mask(item: Item, root: Path) -> ExportedFile:
    name = f"{item.name.rpartition('.')[0]}_mask.png"
    _check_pairing(item, name, "mask", "masks")
    if isinstance(item.labels, MaskLabels):
        return _stored(name, root, item.labels.file, item.labels.sha256)
    return _made(name, _blank_mask(item.height, item.width))


@lru_cache(maxsize=64)
def _blank_mask(height: int, width: int) -> bytes:
    """Return a mask of zeros; a line's cameras have few sizes, and encoding takes its time."""
    import imagecodecs

    return bytes(imagecodecs.png_encode(np.zeros((height, width), np.uint8)))
