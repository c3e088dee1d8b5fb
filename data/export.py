"""A data-set version as files that other tools read, and that give the same version again."""

import json
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data.errors import LabelError
from data.labels import Box, BoxLabels, MaskLabels, Polygon, PolygonLabels, shapes
from data.manifest import Manifest
from data.storage import file_missing, read_verified

ExportFormat = Literal["coco", "masks"]
COCO_NAME = "annotations.json"
_UNFIT: dict[ExportFormat, tuple[type, ...]] = {
    "coco": (MaskLabels,),
    "masks": (PolygonLabels, BoxLabels),
}
_HINTS: dict[ExportFormat, str] = {
    "coco": "Export the version as masks; outlines drawn around masks would not be the same.",
    "masks": "Export the version as coco; masks drawn from shapes would not be the same.",
}


@dataclass(frozen=True)
class ExportedFile:
    """One file of an export.

    Attributes:
        name: Relative, with forward slashes.
        size: Bytes.
        read: Returns the content; a stored file is verified first.
    """

    name: str
    size: int
    read: Callable[[], bytes]


def export_files(manifest: Manifest, root: Path, form: ExportFormat) -> Iterator[ExportedFile]:
    """Yield a version's frames under their names, then its labels.

    "coco" writes one `COCO_NAME` with every outline and box; a frame without annotation is good.
    "masks" puts an index mask beside each frame, all zeros for a good one. Neither converts: what a
    format can't hold exactly is refused.

    Args:
        manifest: The version.
        root: Storage root.
        form: The format.

    Raises:
        LabelError: ``export_unfit``: some labels are of a kind that the format can't hold.
        DataError: A stored file is gone.
    """
    unfit = [item.name for item in manifest.items if isinstance(item.labels, _UNFIT[form])]
    if unfit:
        raise LabelError(
            "export_unfit",
            f"{len(unfit)} frames have labels that {form!r} can't hold exactly.",
            file=unfit[0],
            hint=_HINTS[form],
        )
    frames = [_stored(item.name, root, item.file, item.sha256) for item in manifest.items]
    return iter([*frames, *(_masks(manifest, root) if form == "masks" else [_coco(manifest)])])


def _stored(name: str, root: Path, file: str, sha256: str) -> ExportedFile:
    try:
        size = (root / file).stat().st_size
    except OSError as error:
        raise file_missing(root, name) from error
    return ExportedFile(name, size, partial(read_verified, root, file, sha256))


def _made(name: str, content: bytes) -> ExportedFile:
    return ExportedFile(name, len(content), lambda: content)


def _masks(manifest: Manifest, root: Path) -> Iterator[ExportedFile]:
    for item in manifest.items:
        name = f"{item.name.rpartition('.')[0]}_mask.png"
        if isinstance(item.labels, MaskLabels):
            yield _stored(name, root, item.labels.file, item.labels.sha256)
        else:
            yield _made(name, _blank_mask(item.height, item.width))


@lru_cache(maxsize=64)
def _blank_mask(height: int, width: int) -> bytes:
    """Return a mask of zeros; a line's cameras have few sizes, and encoding takes its time."""
    import imagecodecs

    return bytes(imagecodecs.png_encode(np.zeros((height, width), np.uint8)))


def _coco(manifest: Manifest) -> ExportedFile:
    numbers = {name: number for number, name in enumerate(manifest.classes, start=1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, item in enumerate(manifest.items, start=1):
        size = {"width": item.width, "height": item.height}
        images.append({"id": image_id, "file_name": item.name, **size})
        for shape in shapes(item.labels):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": numbers[shape.class_name],
                    "iscrowd": 0,
                    "area": shape.area_px,
                    **_geometry(shape),
                }
            )
    document = {
        "info": {"description": "Hairline data-set version", "version": manifest.digest},
        "images": images,
        "categories": [{"id": number, "name": name} for name, number in numbers.items()],
        "annotations": annotations,
    }
    return _made(COCO_NAME, json.dumps(document, ensure_ascii=False).encode())


def _geometry(shape: Polygon | Box) -> dict[str, Any]:
    if isinstance(shape, Box):
        return {"bbox": [shape.x, shape.y, shape.width, shape.height]}
    x, y = zip(*shape.points, strict=True)
    outline = [coordinate for point in shape.points for coordinate in point]
    return {
        "segmentation": [outline],
        "bbox": [min(x), min(y), max(x) - min(x), max(y) - min(y)],
    }


def tar_stream(files: Iterable[ExportedFile]) -> Iterator[bytes]:
    """Yield an uncompressed tar archive piece by piece; one file is in memory at a time.

    Equal files give equal bytes: times and owners are left out.

    Raises:
        DataError: A stored file is gone or is another one than the version's.
    """
    for file in files:
        info = tarfile.TarInfo(file.name)
        info.size = file.size
        yield info.tobuf(tarfile.PAX_FORMAT)
        yield file.read()
        yield b"\0" * (-file.size % tarfile.BLOCKSIZE)
    yield b"\0" * 2 * tarfile.BLOCKSIZE
