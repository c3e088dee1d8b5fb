"""Training, validation and test images of a set, split by part and never by patch."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.norm.frames import Frame, list_frames, read_frame
from benchmarks.norm.protocol import SETS

SPLIT_SEED = 0
# Test is larger than validation: its score is reported, the other one only picks one of three.
SHARES = {"train": 0.5, "val": 0.2, "test": 0.3}
PATCHES = {"train": 512, "val": 192, "test": 384}
PATCH_PX = 64
# A patch "near" a defect has a defective pixel within this distance of its middle, so that the
# defect is not always in the middle.
JITTER_PX = 20
# Whole frames are slow to judge; more of them would cost more than the training.
MOST_FRAMES = {"train": 64, "val": 10, "test": 10}
# A network's stages lie at strides up to 32.
MULTIPLE_PX = 32


@dataclass(frozen=True)
class Images:
    """Images of one split: pixels, uint8 (C, H, W) each, and masks, uint8 (H, W) each."""

    pixels: list[Tensor]
    masks: list[Tensor]


def split_frames(frames: Sequence[Frame]) -> dict[str, list[Frame]]:
    """Deal whole parts to the splits.

    Within each stratum, parts come in the order of a keyed hash and go where the most frames are
    missing, so each split gets its share of every kind of frame.
    """
    splits: dict[str, list[Frame]] = {name: [] for name in SHARES}
    for stratum in sorted({frame.stratum for frame in frames}):
        of_stratum = [frame for frame in frames if frame.stratum == stratum]
        missing = {name: share * len(of_stratum) for name, share in SHARES.items()}
        for part in sorted({frame.part for frame in of_stratum}, key=_draw):
            members = [frame for frame in of_stratum if frame.part == part]
            split = max(missing, key=lambda name: missing[name])
            splits[split] += members
            missing[split] -= len(members)
    return splits


def _draw(name: str) -> str:
    return hashlib.sha256(f"{SPLIT_SEED}\0{name}".encode()).hexdigest()


def set_frames(set_name: str, datasets: Path) -> dict[str, list[Frame]]:
    """Return the frames of each split of a set.

    "bsdata_frames" has only the specimens, whose frames are wider than 2000 px. Frame sets keep at
    most `MOST_FRAMES` of a split, in the order of a keyed hash.
    """
    spec = SETS[set_name]
    frames = list_frames(spec.source, datasets)
    if spec.patches:
        return split_frames(frames)
    kept = [frame for frame in frames if frame.stratum != "sequence"]
    return {
        name: sorted(members, key=lambda frame: _draw(frame.name))[: MOST_FRAMES[name]]
        for name, members in split_frames(kept).items()
    }


def load_set(set_name: str, datasets: Path) -> dict[str, Images]:
    """Read the images of each split into memory.

    Raises:
        MissingDatasetError: The data set is not there.
    """
    splits = set_frames(set_name, datasets)
    if SETS[set_name].patches:
        return {name: cut_patches(members, PATCHES[name]) for name, members in splits.items()}
    images = {}
    for name, members in splits.items():
        pairs = [whole_multiple(*read_frame(frame)) for frame in members]
        images[name] = Images([pixels for pixels, _ in pairs], [mask for _, mask in pairs])
    return images


def whole_multiple(pixels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Cut at most 31 px off the bottom and the right, so that both sides are multiples of 32."""
    height, width = (side // MULTIPLE_PX * MULTIPLE_PX for side in mask.shape)
    return pixels[:, :height, :width].contiguous(), mask[:height, :width].contiguous()


def cut_patches(frames: Sequence[Frame], count: int) -> Images:
    """Cut `count` patches at native resolution, half near a defect and half anywhere.

    Frames take turns, defective ones alone for the first half; every frame is read once.
    """
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    ordered = sorted(frames, key=lambda frame: _draw(frame.name))
    read = [read_frame(frame) for frame in ordered]
    defective = [pair for pair in read if pair[1].any()]
    patches = []
    for index in range(count):
        near_defect = index < count // 2
        source = defective if near_defect else read
        pixels, mask = source[index % len(source)]
        patches.append(_cut(pixels, mask, near_defect=near_defect, generator=generator))
    return Images([pixels for pixels, _ in patches], [mask for _, mask in patches])


def _cut(
    pixels: Tensor, mask: Tensor, *, near_defect: bool, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    draws = torch.rand(3, generator=generator).tolist()
    corner = [
        int(draw * (side - PATCH_PX + 1)) for draw, side in zip(draws[:2], mask.shape, strict=True)
    ]
    if near_defect:
        centre = defective_pixel(mask, draws[2])
        jitter = [int((2 * draw - 1) * JITTER_PX) for draw in draws[:2]]
        corner = [
            window_start(middle + shift, PATCH_PX, side)
            for middle, shift, side in zip(centre, jitter, mask.shape, strict=True)
        ]
    top, left = corner
    window = (slice(top, top + PATCH_PX), slice(left, left + PATCH_PX))
    return pixels[:, *window].clone(), mask[window].clone()


def defective_pixel(mask: Tensor, draw: float) -> tuple[int, int]:
    """Return row and column of one defective pixel, chosen by a draw from [0, 1).

    A mask without a defect gives its middle.
    """
    flat = mask.flatten().nonzero()
    if len(flat) == 0:
        return mask.shape[0] // 2, mask.shape[1] // 2
    position = int(flat[int(draw * len(flat))])
    return position // mask.shape[1], position % mask.shape[1]


def window_start(middle: int, length: int, side: int) -> int:
    """Return where a window around `middle` starts if it is to lie inside `side`."""
    return min(max(middle - length // 2, 0), side - length)


def common_crop(
    pixels: Sequence[Tensor], masks: Sequence[Tensor], draws: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Stack images, those of unequal sizes cropped to the sides all of them have.

    Each crop lies around a defective pixel of its image, chosen by the image's draw; batches of one
    and batches of equal sizes are whole. A larger batch of unequal frames therefore sees fewer
    pixels than the same frames one by one.

    Returns:
        Pixels, uint8 (N, C, H, W), and masks, uint8 (N, H, W).
    """
    height, width = (min(mask.shape[axis] for mask in masks) for axis in (0, 1))
    cropped = []
    for image, mask, draw in zip(pixels, masks, draws, strict=True):
        if mask.shape == (height, width):
            cropped.append((image, mask))
            continue
        row, column = defective_pixel(mask, draw)
        top, left = (
            window_start(row, height, mask.shape[0]),
            window_start(column, width, mask.shape[1]),
        )
        window = (slice(top, top + height), slice(left, left + width))
        cropped.append((image[:, *window], mask[window]))
    return torch.stack([image for image, _ in cropped]), torch.stack([mask for _, mask in cropped])
