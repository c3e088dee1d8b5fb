"""Which frames go into which step, and how frames of unequal sizes become one tensor."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data import Frame, Item
from models import Preprocessing, frame_to_tensor, pad_to_multiple
from training.config import CropResolution, NativeResolution, RunConfig

Size = tuple[int, int]


@dataclass(frozen=True)
class Batch:
    """One step's input.

    Attributes:
        images: (N, C, H, W) float32.
        targets: (N, K, H, W) uint8.
        valid: (N, 1, H, W) bool, false where a frame was padded.
    """

    images: Tensor
    targets: Tensor
    valid: Tensor


def plan_epoch(
    sizes: Sequence[Size], batch_size: int, *, seed: int, epoch: int
) -> list[tuple[int, ...]]:
    """Return the batches of one pass over the frames, as indices.

    Frames of equal size go together, since padding would enter the normalization's statistics;
    those left over of each size share mixed batches.  The order is random, and a pure function of
    the seed and the epoch, so that a resumed run sees what the uninterrupted one would have seen.
    """
    generator = np.random.default_rng([seed, epoch])
    waiting: dict[Size, list[int]] = {}
    batches: list[tuple[int, ...]] = []
    for index in generator.permutation(len(sizes)):
        same_size = waiting.setdefault(sizes[index], [])
        same_size.append(int(index))
        if len(same_size) == batch_size:
            batches.append(tuple(same_size))
            same_size.clear()
    left_over = [index for size in sorted(waiting) for index in waiting[size]]
    batches += [
        tuple(left_over[start : start + batch_size])
        for start in range(0, len(left_over), batch_size)
    ]
    return [batches[position] for position in generator.permutation(len(batches))]


def sizes_seen(items: Sequence[Item], resolution: NativeResolution | CropResolution) -> list[Size]:
    """Return the height and width at which training sees each frame."""
    if isinstance(resolution, CropResolution):
        return [(resolution.height_px, resolution.width_px)] * len(items)
    return [(item.height, item.width) for item in items]


def count_steps(sizes: Sequence[Size], config: RunConfig) -> tuple[int, int]:
    """Return the steps of one epoch and of the whole run, early stopping and minutes aside."""
    steps_per_epoch = len(plan_epoch(sizes, config.batch_size, seed=config.seed, epoch=0))
    limit = config.budget.max_steps
    steps_total = steps_per_epoch * config.budget.max_epochs
    return steps_per_epoch, steps_total if limit is None else min(limit, steps_total)


def collate(frames: Sequence[Frame], preprocessing: Preprocessing) -> Batch:
    """Stack frames; smaller ones are padded at the bottom and right and marked invalid there."""
    tensors = [frame_to_tensor(frame.pixels, preprocessing)[0] for frame in frames]
    height = max(tensor.shape[1] for tensor in tensors)
    width = max(tensor.shape[2] for tensor in tensors)
    padded_height = height + -height % preprocessing.stride_px
    padded_width = width + -width % preprocessing.stride_px
    images, targets, valid = [], [], []
    for frame, tensor in zip(frames, tensors, strict=True):
        bottom = height - tensor.shape[1]
        right = width - tensor.shape[2]
        same_size = F.pad(tensor[None], (0, right, 0, bottom), mode="replicate")
        images.append(pad_to_multiple(same_size, preprocessing.stride_px))
        target = torch.zeros(frame.mask.shape[2], padded_height, padded_width, dtype=torch.uint8)
        target[:, : frame.mask.shape[0], : frame.mask.shape[1]] = torch.from_numpy(
            np.ascontiguousarray(frame.mask.transpose(2, 0, 1))
        )
        targets.append(target)
        inside = torch.zeros(1, padded_height, padded_width, dtype=torch.bool)
        inside[:, : tensor.shape[1], : tensor.shape[2]] = True
        valid.append(inside)
    return Batch(torch.cat(images), torch.stack(targets), torch.stack(valid))
