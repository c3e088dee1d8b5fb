"""Which frames go into which step, and how frames of unequal sizes become one tensor."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data import Draw, Frame, Item
from data.sampling import EpochCounts, count_epoch, draw_epoch
from models import Preprocessing, frame_to_tensor, pad_to_multiple
from models.distance_maps import signed_distances
from models.loss_spec import Boundary
from training.config import CropResolution, NativeResolution, RunConfig

Size = tuple[int, int]
Part = TypeVar("Part")


@dataclass(frozen=True)
class Batch:
    """What the network runs on at once: a step's input, or a part of it.

    Attributes:
        images: (N, C, H, W) float32.
        targets: (N, K, H, W) uint8.
        valid: (N, 1, H, W) bool, false where a frame was padded.
        distances: (N, K, H, W) float16 to each class's outline, for a loss that asks for them.
    """

    images: Tensor
    targets: Tensor
    valid: Tensor
    distances: Tensor | None = None


def plan_epoch(
    sizes: Sequence[Size], batch_size: int, *, seed: int, epoch: int
) -> list[tuple[int, ...]]:
    """Return the batches of one pass over the frames, as indices.

    Frames of equal size go together, since padding would enter the normalization's statistics;
    those left over of each size share mixed batches.  The order is random, and a pure function of
    the seed and the epoch, so that a resumed run sees what the uninterrupted one would have seen.
    """
    generator = np.random.default_rng([seed, epoch])
    order = [int(index) for index in generator.permutation(len(sizes))]
    places = _group([sizes[index] for index in order], batch_size)
    batches = [tuple(order[place] for place in batch) for batch in places]
    return [batches[position] for position in generator.permutation(len(batches))]


def plan_draws(items: Sequence[Item], config: RunConfig, epoch: int) -> list[tuple[Draw, ...]]:
    """Return the batches of one epoch as the configuration wants them sampled.

    At a stated share of defects, showings keep the order in which they are spread evenly: batches
    follow as they fill up.  A frame of another size may wait for its like, so that with several
    sizes the share of a stretch is off by what waits, less than a batch a size.
    """
    sizes = sizes_seen(items, config.resolution)
    rate = config.sampling.defect_rate
    if rate is None:
        batches = plan_epoch(sizes, config.batch_size, seed=config.seed, epoch=epoch)
        return [tuple(Draw(index) for index in batch) for batch in batches]
    draws = draw_epoch(
        [item.is_defective for item in items],
        rate,
        strata=sizes,
        clean_windows=isinstance(config.resolution, CropResolution),
        seed=config.seed,
        epoch=epoch,
    )
    places = _group([sizes[draw.index] for draw in draws], config.batch_size)
    return [tuple(draws[place] for place in batch) for batch in places]


def plan_steps(
    items: Sequence[Item], config: RunConfig, epoch: int
) -> list[tuple[tuple[Draw, ...], ...]]:
    """Return the optimizer steps of one epoch, each the micro-batches it learns from.

    An epoch takes as few steps of at most ``accumulation_steps`` micro-batches a device as it can,
    and they hold equally many, give or take one: a last step of the few that are left over would
    move the weights as far as any other, by the noisiest gradient.  The plan is that of all
    devices: one with n times the ``accumulation_steps`` has the same steps as n.  In lockstep
    every device needs as many micro-batches as the others, so those that are too many for that
    are left out of the epoch, other ones each time.
    """
    batches = plan_draws(items, config, epoch)
    together = config.devices if config.in_lockstep else 1
    count = len(batches) // together
    units = split_evenly(batches[: count * together], count)
    steps = -(-count * together // (config.accumulation_steps * config.devices))
    return [tuple(itertools.chain(*step)) for step in split_evenly(units, steps)]


def split_evenly(whole: Sequence[Part], parts: int) -> list[Sequence[Part]]:
    """Cut a sequence into consecutive parts of equal length, the first ones longer by one."""
    if parts == 0:
        return []
    length, longer = divmod(len(whole), parts)
    ends = [part * length + min(part, longer) for part in range(parts + 1)]
    return [whole[begin:end] for begin, end in itertools.pairwise(ends)]


def planned_counts(items: Sequence[Item], config: RunConfig) -> EpochCounts | None:
    """Return an epoch's showings with and without a defect; None if no share is asked for."""
    rate = config.sampling.defect_rate
    if rate is None:
        return None
    defective = sum(item.is_defective for item in items)
    windows = isinstance(config.resolution, CropResolution)
    return count_epoch(defective, len(items) - defective, rate, clean_windows=windows)


def _group(sizes: Sequence[Size], batch_size: int) -> list[tuple[int, ...]]:
    """Return places in ``sizes`` as batches of one size, in the order in which they fill up.

    What is left over of each size comes last, in batches of mixed sizes.
    """
    waiting: dict[Size, list[int]] = {}
    batches: list[tuple[int, ...]] = []
    for place, size in enumerate(sizes):
        same_size = waiting.setdefault(size, [])
        same_size.append(place)
        if len(same_size) == batch_size:
            batches.append(tuple(same_size))
            same_size.clear()
    left_over = [place for size in sorted(waiting) for place in waiting[size]]
    return batches + [
        tuple(left_over[start : start + batch_size])
        for start in range(0, len(left_over), batch_size)
    ]


def sizes_seen(items: Sequence[Item], resolution: NativeResolution | CropResolution) -> list[Size]:
    """Return the height and width at which training sees each frame."""
    if isinstance(resolution, CropResolution):
        return [(resolution.height_px, resolution.width_px)] * len(items)
    return [(item.height, item.width) for item in items]


def count_steps(items: Sequence[Item], config: RunConfig) -> tuple[int, int]:
    """Return the optimizer steps of an epoch and of the run, early stopping and minutes aside."""
    steps_per_epoch = len(plan_steps(items, config, epoch=0))
    limit = config.budget.max_steps
    steps_total = steps_per_epoch * config.budget.max_epochs
    return steps_per_epoch, steps_total if limit is None else min(limit, steps_total)


def largest_batch_bytes(items: Sequence[Item], config: RunConfig, class_count: int) -> int:
    """Return the memory of the largest possible `Batch`, padding to the stride aside."""
    channels = max(item.channels for item in items)
    # Float32 for each channel, a byte for each class's target and one for validity.
    pixel_bytes = 4 * channels + class_count + 1
    if isinstance(config.loss, Boundary):
        pixel_bytes += 2 * class_count
    sizes = sizes_seen(items, config.resolution)
    return config.batch_size * pixel_bytes * max(height * width for height, width in sizes)


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


def with_distances(batch: Batch, reach_px: float) -> Batch:
    """Add each frame's distance maps, see `models.distance_maps`; 0 where a frame was padded."""
    maps = torch.zeros(batch.targets.shape, dtype=torch.float16)
    for index, (target, valid) in enumerate(zip(batch.targets, batch.valid, strict=True)):
        height, width = int(valid[0, :, 0].sum()), int(valid[0, 0].sum())
        mask = target[:, :height, :width].permute(1, 2, 0).numpy()
        maps[index, :, :height, :width] = torch.from_numpy(signed_distances(mask, reach_px))
    return replace(batch, distances=maps)
