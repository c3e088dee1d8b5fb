"""Before the first step: how much memory and time a run will take, and whether that is there.

``python -m training.preflight RUN_DIR`` prints it and starts nothing.
"""

import argparse
import json
import logging
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from data.labels import labelled_defects
from data.loader import batches_ahead, default_workers
from models import resized_size
from training.batches import Size, count_steps, largest_batch_bytes, sizes_seen
from training.config import RunConfig
from training.memory.dry_step import (
    BatchShape,
    StepBytes,
    dry_pixels,
    look_bytes,
    step_bytes,
    step_seconds,
)
from training.memory.estimate import (
    LOOK_BYTES_A_PIXEL,
    LOOK_BYTES_A_PIXEL_AND_CLASS,
    Estimate,
    Holdings,
    phase_peaks,
    step_time,
)
from training.memory.limits import resident_bytes
from training.memory.shortage import release_memory
from training.preparation import Prepared

logger = logging.getLogger(__name__)


def estimate_run(config: RunConfig, prepared: Prepared) -> Estimate:
    """Return what a run takes at its peak, from dry steps on copies of its network.

    Side effects: the libraries that a step needs are loaded; the random state is kept.
    """
    shape = largest_batch(config, prepared)
    shapes = dry_shapes(shape, config.model.stride_px, dry_pixels(prepared.device))
    seconds = step_seconds(config, prepared, shapes)
    # What the dry steps held is there for the run to take again.
    release_memory()
    step = step_bytes(config, prepared, shape)
    held = _holdings(config, prepared, step)
    on_cpu = prepared.device.type == "cpu"
    factor = None if on_cpu else _gpu_step_factor(config, prepared, shapes[-1])
    peaks = phase_peaks(held, gpu_step_factor=factor)
    _, steps = count_steps(prepared.train.items, config)
    return Estimate(
        peak_bytes=max(peaks.values()),
        phase_bytes=peaks,
        step_s=step_time(
            (shapes[0].pixels, shapes[-1].pixels), (seconds[0], seconds[-1]), shape.pixels
        ),
        steps=steps,
        details={"holdings": vars(held), "step": vars(shape)},
    )


def largest_frame(sizes: Iterable[Size], *, together: bool) -> Size:
    """Return the size of the largest frame; frames that share a batch are padded to one size."""
    sizes = list(sizes)
    if together:
        return max(height for height, _ in sizes), max(width for _, width in sizes)
    return max(sizes, key=lambda size: size[0] * size[1])


def largest_batch(config: RunConfig, prepared: Prepared) -> BatchShape:
    """Return the largest forward pass that training may make, and the most boxes in a frame."""
    sizes = sizes_seen(prepared.train.items, config.resolution)
    frame = largest_frame(sizes, together=config.batch_size > 1)
    shape = _padded(config.batch_size, frame, config.model.stride_px)
    return replace(shape, boxes=_most_boxes(config, prepared))


def _most_boxes(config: RunConfig, prepared: Prepared) -> int:
    """Return how many boxes a frame has at most, from the labels that the manifest lists."""
    if config.model.task != "detection":
        return 0
    classes = prepared.manifest.classes
    labelled = max(len(labelled_defects(item.labels, classes)) for item in prepared.train.items)
    return labelled + (config.augmentation.paste_rate > 0)


def dry_shapes(shape: BatchShape, stride_px: int, most_pixels: int) -> list[BatchShape]:
    """Return two sizes for real dry steps, the smaller first, like ``shape`` as far as they can.

    Args:
        shape: Of the run's largest forward pass.
        stride_px: Of the network.
        most_pixels: About those of the larger one, its frames together.
    """
    found = []
    for pixels in (most_pixels // 4, most_pixels):
        scale = min(1.0, (pixels / shape.pixels) ** 0.5)
        height, width = (
            min(side, max(2 * stride_px, round(side * scale / stride_px) * stride_px))
            for side in (shape.height_px, shape.width_px)
        )
        found.append(replace(shape, height_px=height, width_px=width))
    return found


def _holdings(config: RunConfig, prepared: Prepared, step: StepBytes) -> Holdings:
    classes = len(prepared.manifest.classes)
    sizes = sizes_looked_at(prepared)
    frame = largest_frame(sizes, together=False)
    look = _look_shape(config, prepared, sizes)
    on_cpu = prepared.device.type == "cpu"
    # A detector answers with boxes: there are no maps to count.
    maps = 0 if config.model.task == "detection" else classes
    a_pixel = LOOK_BYTES_A_PIXEL + maps * LOOK_BYTES_A_PIXEL_AND_CLASS if on_cpu else 0
    network_bytes = _bytes_of([*prepared.network.parameters(), *prepared.network.buffers()])
    weights_bytes = _bytes_of(prepared.network.parameters())
    return Holdings(
        process=resident_bytes() if on_cpu else torch.cuda.memory_allocated(prepared.device),
        network=network_bytes,
        kept=step.kept_bytes,
        step_peak=step.peak_bytes,
        look_peak=look_bytes(prepared, look) + a_pixel * frame[0] * frame[1],
        loading=_loading_bytes(config, prepared),
        best_weights=weights_bytes * (2 if config.ema else 1),
    )


def frame_looked_at(config: RunConfig, sizes: Iterable[Size]) -> Size:
    """Return the largest whole frame of native sizes as the network sees it."""
    factor = config.resize_factor
    seen = [resized_size(height, width, factor) for height, width in sizes]
    return largest_frame(seen, together=False)


def _look_shape(config: RunConfig, prepared: Prepared, sizes: Iterable[Size]) -> BatchShape:
    """Return the largest forward pass of a look: a whole frame, or a tile of it."""
    shape = _padded(1, frame_looked_at(config, sizes), config.model.stride_px)
    if prepared.look_tiles is None:
        return shape
    seen_px = prepared.look_tiles.seen_px
    height, width = (min(side, seen_px) for side in (shape.height_px, shape.width_px))
    return replace(shape, height_px=height, width_px=width)


def sizes_looked_at(prepared: Prepared) -> list[Size]:
    """Return the native height and width of each frame that is looked at whole."""
    items = [*prepared.calibration.items, *prepared.test.items]
    return [(item.height, item.width) for item in items]


def _loading_bytes(config: RunConfig, prepared: Prepared) -> int:
    """Return what batches take that wait for the network or are being loaded."""
    workers = default_workers() if config.data.workers is None else config.data.workers
    classes = len(prepared.manifest.classes)
    batch_bytes = largest_batch_bytes(prepared.train.items, config, classes)
    waiting = batches_ahead(workers, batch_bytes) if workers else 0
    # The step at work holds its micro-batches; the first of them is counted with it.
    return (waiting + config.accumulation_steps - 1) * batch_bytes


def _gpu_step_factor(config: RunConfig, prepared: Prepared, shape: BatchShape) -> float:
    """Return what a small step takes of the GPU over the tensors it is seen to hold.

    Convolutions choose their workspace as they like, and the allocator rounds up.
    """
    seen = step_bytes(config, prepared, shape)
    before = torch.cuda.memory_allocated(prepared.device)
    torch.cuda.reset_peak_memory_stats(prepared.device)
    step_seconds(config, prepared, [shape])
    taken = torch.cuda.max_memory_allocated(prepared.device) - before - seen.kept_bytes
    torch.cuda.reset_peak_memory_stats(prepared.device)
    return max(1.0, taken / max(seen.peak_bytes - seen.kept_bytes, 1))


def _padded(frames: int, frame: Size, stride_px: int) -> BatchShape:
    height, width = (side + -side % stride_px for side in frame)
    return BatchShape(frames, height, width)


def _bytes_of(tensors: Iterable[Tensor | nn.Parameter]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def main() -> int:
    """Print the estimate of a run directory as JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m training.preflight",
        description="Say what the run in a directory would take, and start nothing.",
    )
    parser.add_argument("run_dir", type=Path, help="a directory that holds config.json")
    arguments = parser.parse_args()
    if not arguments.run_dir.is_dir():
        parser.error(f"{arguments.run_dir} is not a directory")
    from training.memory.plan import preview

    sys.stdout.write(json.dumps(preview(arguments.run_dir), indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
