"""Reads the real images where they lie: frames with their masks, and the part each one shows."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

# Two photos lie in the weld set twice, under other numbers (the pixels agree but for compression).
WELD_TWINS = {208: 97, 207: 105}
# Photos of neighbouring numbers may show one seam.
WELD_BLOCK = 10
# A crop of the second board comes back, almost pixel by pixel, four and eight numbers later, never
# across a multiple of twelve: the panel repeats its layout along a scan line.
PCB_BLOCK = 12
# In a Pascal VOC file.
BOX_SIDES = ("xmin", "ymin", "xmax", "ymax")


class MissingDatasetError(Exception):
    """A data set's folder is not there."""


@dataclass(frozen=True)
class Frame:
    """One frame in its files.

    Attributes:
        name: Its name, unique in its set.
        part: What must not lie on both sides of a split.
        stratum: Kind of frame; splits are dealt within each.
        image: The image, or the image under test.
        label: Mask, polygons or boxes.
        template: The defect-free image beside it, where the set has one.
    """

    name: str
    part: str
    stratum: str
    image: Path
    label: Path
    template: Path | None = None


def list_frames(source: str, datasets: Path) -> list[Frame]:
    """Return the frames of a data set, sorted by name.

    Args:
        source: "weld_seg", "bsdata", "deeppcb" or "hripcb".
        datasets: Folder of the data sets.

    Raises:
        MissingDatasetError: The data set is not in the folder, or holds no image.
    """
    folder = datasets / source
    frames = LISTERS[source](folder) if folder.is_dir() else []
    if not frames:
        raise MissingDatasetError(
            f"no images of {source} in {folder}; name the folder of data sets with --datasets"
        )
    return sorted(frames, key=lambda frame: frame.name)


def _weld_frames(folder: Path) -> list[Frame]:
    frames = []
    for image in folder.glob("data/*/images/*.jpg"):
        number = int(re.split(r"[_.]", image.name)[0])
        block = WELD_TWINS.get(number, number) // WELD_BLOCK
        label = image.parents[1] / "masks" / f"{image.stem}_mask.png"
        frames.append(Frame(image.stem, f"block {block}", "photo", image, label))
    return frames


def _bsdata_frames(folder: Path) -> list[Frame]:
    """List single specimens (KGT) and sequences, which show eight spindle positions wearing out."""
    frames = []
    for image in folder.glob("data/*.jpg"):
        label = folder / "label" / f"{image.stem}.json"
        specimen = re.match(r"(KGT[^_]+)_", image.name)
        position = re.search(r"_(\d{6}_\d{3})_", image.name)
        found = specimen or position
        if found is None:
            raise ValueError(f"{image}: the name tells neither specimen nor spindle position")
        stratum = "specimen" if specimen else "sequence"
        frames.append(Frame(image.stem, found[1], stratum, image, label))
    return frames


def _deeppcb_frames(folder: Path) -> list[Frame]:
    frames = []
    for image in folder.glob("PCBData/group*/*/*_test.jpg"):
        name = image.name.removesuffix("_test.jpg")
        board, number = name[:5], int(name[5:])
        label = image.parent.with_name(f"{image.parent.name}_not") / f"{name}.txt"
        template = image.with_name(f"{name}_temp.jpg")
        part = f"{board} row {number // PCB_BLOCK}"
        frames.append(Frame(name, part, board, image, label, template))
    return frames


def _hripcb_frames(folder: Path) -> list[Frame]:
    """List photos of bare boards; the two digits before the defect's name tell the board."""
    images = (folder / "PCB_DATASET" / "images").glob("*/*.jpg")
    labels = folder / "PCB_DATASET" / "Annotations"
    return [
        Frame(
            image.stem,
            f"board {image.stem[:2]}",
            "photo",
            image,
            labels / image.parent.name / f"{image.stem}.xml",
        )
        for image in images
    ]


LISTERS: dict[str, Callable[[Path], list[Frame]]] = {
    "weld_seg": _weld_frames,
    "bsdata": _bsdata_frames,
    "deeppcb": _deeppcb_frames,
    "hripcb": _hripcb_frames,
}


def read_frame(frame: Frame) -> tuple[Tensor, Tensor]:
    """Return a frame's pixels and mask at native size.

    Returns:
        Pixels, uint8 (C, H, W): RGB, or where there is a template the grey image under test and the
        grey template; and the mask, uint8 (H, W), 1 where defective.
    """
    if frame.template is not None:
        layers = [_pixels(path, "L") for path in (frame.image, frame.template)]
        pixels = np.stack(layers)
    else:
        pixels = _pixels(frame.image, "RGB").transpose(2, 0, 1)
    mask = read_mask(frame.label, (pixels.shape[1], pixels.shape[2]))
    return torch.from_numpy(pixels.copy()), torch.from_numpy(mask)


def _pixels(path: Path, mode: str) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.array(image.convert(mode))


def read_mask(label: Path, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return a binary mask of (height, width).

    Args:
        label: A mask image, a labelme file, a list of boxes or a Pascal VOC file; a labelme file
            that is missing means that there is no defect, by that data set's convention.
        size: Height and width in pixels.

    Raises:
        ValueError: The mask has another size than the image.
    """
    if label.suffix == ".png":
        mask = (_pixels(label, "L") > 0).astype(np.uint8)
        if mask.shape != size:
            raise ValueError(f"{label}: mask is {mask.shape}, its image is {size}")
        return mask
    canvas = Image.new("L", (size[1], size[0]))
    draw = ImageDraw.Draw(canvas)
    if label.suffix == ".txt":
        for line in label.read_text().split("\n"):
            if line.strip():
                draw.rectangle([int(value) for value in line.split()[:4]], fill=1)
    elif label.suffix == ".xml":
        for box in ET.parse(label).iter("bndbox"):  # noqa: S314  # A folder of one's own.
            draw.rectangle([int(box.findtext(side, "")) for side in BOX_SIDES], fill=1)
    elif label.is_file():
        shapes: list[dict[str, Any]] = json.loads(label.read_text())["shapes"]
        for shape in shapes:
            draw.polygon([(x, y) for x, y in shape["points"]], fill=1)
    return np.array(canvas)
