"""Which frames go into which step, and how frames of unequal sizes become one tensor."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from data import Draw, Frame, Item
from data.sampling import EpochCounts, count_epoch, draw_epoch
from models import Preprocessing, resized_size
from models.distance_maps import signed_distances
from models.loss_spec import Boundary
from models.preprocessing import model_pixels, repeat_edge, standardize_into
from training.config import CropResolution, ResizedResolution, Resolution, RunConfig
from training.resizing import resize_mask

Size = tuple[int, int]
Part = TypeVar("Part")


class TaskBatch(Protocol):
    """One step's input, or a part of it, whatever the network is to learn."""

    @property
    def frame_count(self) -> int:
        """How many frames or windows it holds."""

    @property
    def defective_count(self) -> int:
        """How many of them show a labelled defect."""

    @property
    def pixel_count(self) -> int:
        """How many pixels the network sees, padding included."""

    @property
    def valid_pixel_count(self) -> int:
        """How many of them are no padding."""

    @property
    def weight(self) -> int:
        """What its loss is a mean over; in a step of several batches each counts by it."""

    def inputs(self, device: torch.device) -> tuple[Any, ...]:
        """Return the network's arguments in training mode."""

    def truth(self, device: torch.device) -> tuple[Any, ...]:
        """Return the loss's arguments after the network's answer."""


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

    @property
    def frame_count(self) -> int:
        """How many frames or windows it holds."""
        return len(self.targets)

    @cached_property
    def defective_count(self) -> int:
        """How many of them show a labelled defect."""
        return int(self.targets.any(dim=(1, 2, 3)).sum())

    @property
    def pixel_count(self) -> int:
        """How many pixels the network sees, padding included."""
        return self.valid.numel()

    @cached_property
    def valid_pixel_count(self) -> int:
        """How many of them are no padding."""
        return int(torch.count_nonzero(self.valid))

    @property
    def weight(self) -> int:
        """The loss is a mean over valid pixels."""
        return self.valid_pixel_count

    def inputs(self, device: torch.device) -> tuple[Tensor]:
        """Return the frames."""
        images = self.images.to(device, memory_format=torch.channels_last, non_blocking=True)
        return (images,)

    def truth(self, device: torch.device) -> tuple[Tensor, ...]:
        """Return masks, validity and, where the loss asked for them, distances."""
        given = (self.targets, self.valid, self.distances)
        return tuple(part.to(device, non_blocking=True) for part in given if part is not None)


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


def sizes_seen(items: Sequence[Item], resolution: Resolution) -> list[Size]:
    """Return the height and width at which training sees each frame."""
    if isinstance(resolution, CropResolution):
        return [(resolution.height_px, resolution.width_px)] * len(items)
    if isinstance(resolution, ResizedResolution):
        factor = resolution.factor
        return [resized_size(item.height, item.width, factor) for item in items]
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


def collate(
    frames: Sequence[Frame], preprocessing: Preprocessing, *, pin_memory: bool = False
) -> Batch:
    """Stack frames; smaller ones are padded at the bottom and right and marked invalid there.

    A model of resized frames has frames and labels resized here, after they were varied: the same
    variation at another scale.

    Args:
        frames: Of one batch.
        preprocessing: The network's.
        pin_memory: Put the batch where a GPU fetches it by itself; needs one.
    """
    shown = [model_pixels(frame.pixels, preprocessing)[0] for frame in frames]
    height, width = (max(pixels.shape[axis] for pixels in shown) for axis in (0, 1))
    height += -height % preprocessing.stride_px
    width += -width % preprocessing.stride_px
    # Each frame is written where it belongs: stacking padded copies would move every byte thrice.
    count, classes = len(frames), frames[0].mask.shape[2]
    images = torch.empty(count, preprocessing.in_channels, height, width, pin_memory=pin_memory)
    targets = torch.zeros(count, classes, height, width, dtype=torch.uint8, pin_memory=pin_memory)
    valid = torch.zeros(count, 1, height, width, dtype=torch.bool, pin_memory=pin_memory)
    for index, (frame, pixels) in enumerate(zip(frames, shown, strict=True)):
        inside = (slice(pixels.shape[0]), slice(pixels.shape[1]))
        standardize_into(images[index][:, *inside], pixels, preprocessing)
        repeat_edge(images[index], pixels.shape[0], pixels.shape[1])
        mask = resize_mask(frame.mask, (pixels.shape[0], pixels.shape[1]))
        targets[index][:, *inside] = torch.from_numpy(mask).permute(2, 0, 1)
        valid[index][:, *inside] = True
    return Batch(images, targets, valid)


def with_distances(batch: Batch, reach_px: float) -> Batch:
    """Add each frame's distance maps, see `models.distance_maps`; 0 where a frame was padded."""
    maps = torch.zeros(batch.targets.shape, dtype=torch.float16)
    for index, (target, valid) in enumerate(zip(batch.targets, batch.valid, strict=True)):
        height, width = int(valid[0, :, 0].sum()), int(valid[0, 0].sum())
        mask = target[:, :height, :width].permute(1, 2, 0).numpy()
        maps[index, :, :height, :width] = torch.from_numpy(signed_distances(mask, reach_px))
    return replace(batch, distances=maps)
