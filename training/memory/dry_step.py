"""A training step and a look at a whole frame, gone through to count bytes and seconds."""

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

from models import SegmentationLoss, tensor_candidates
from training.batches import Batch, TaskBatch
from training.config import RunConfig
from training.detection import DetectionBatch
from training.memory.fake_tensors import SmallForUnknown, fake_copy
from training.memory.live_bytes import LiveBytes
from training.memory.unknown_sizes import MostOfUnknownSize
from training.optimizer_step import take_step
from training.preparation import Prepared, learner_of
from training.schedule import build_optimizer

_CPU = torch.device("cpu")

# Real dry steps are made at no more pixels than these, all frames of a batch together.
DRY_PIXELS = 256 * 256
# A GPU takes longer to be told of a step that small than to make it.
DRY_PIXELS_OF_GPU = 1024 * 1024
# Where boxes lie and how large they are is no matter of memory.
_BOX_PX = 16


@dataclass(frozen=True)
class BatchShape:
    """The size of one forward pass.

    Attributes:
        frames: Frames or windows.
        height_px: Padded to the network's stride.
        width_px: Likewise.
        boxes: Labelled in each frame, for a detector, which compares each of them with every
            anchor or place.
    """

    frames: int
    height_px: int
    width_px: int
    boxes: int = 0

    @property
    def pixels(self) -> int:
        """Of all frames together."""
        return self.frames * self.height_px * self.width_px


def dry_pixels(device: torch.device) -> int:
    """Return about how many pixels the larger of a device's dry steps has."""
    return DRY_PIXELS_OF_GPU if device.type == "cuda" else DRY_PIXELS


@dataclass(frozen=True)
class StepBytes:
    """What a training step holds at once.

    Attributes:
        kept_bytes: From step to step: weights, statistics, windows, gradients, optimizer.
        peak_bytes: At most within a step, what is kept and the batch included.
    """

    kept_bytes: int
    peak_bytes: int


def step_bytes(config: RunConfig, prepared: Prepared, shape: BatchShape) -> StepBytes:
    """Return what a step of the run holds at once; nothing of the run changes.

    It is gone through on tensors without memory, or, where it is small, really. Operators are
    counted by what they return: what one allocates and frees within itself is not.
    """
    with _dry(prepared, shape) as dry:
        optimizer = _resting_optimizer(dry.network, config)
        _fill_optimizer(dry.network, optimizer)
        batch = _batch(prepared, shape)
        with LiveBytes() as live, SmallForUnknown(), MostOfUnknownSize():
            live.watch(_kept_tensors(dry.network, optimizer))
            kept_bytes = live.live_bytes
            live.watch(_tensors_of(batch))
            _go(config, dry, batch, optimizer)
    return StepBytes(kept_bytes, live.peak_bytes)


def look_bytes(prepared: Prepared, shape: BatchShape) -> int:
    """Return what the network holds in eval mode on one whole frame, beyond its own tensors."""
    with _dry(prepared, shape) as dry, torch.no_grad():
        batch = _batch(prepared, shape)
        with LiveBytes() as live, SmallForUnknown(), MostOfUnknownSize():
            live.watch(_tensors_of(batch))
            if isinstance(batch, DetectionBatch):
                _look_for_boxes(dry.network.eval(), batch.images[0])
            else:
                dry.network.eval()(batch.images).float().sigmoid().contiguous()
    found: int = live.peak_bytes
    return found


def _look_for_boxes(network: nn.Module, image: Tensor) -> None:
    """Ask a detector as a look does, then as the comparison with the frozen one does."""
    network([image])
    trained = tensor_candidates(network, image)
    trained.largest_difference(tensor_candidates(network, image, trained.regions))


def step_seconds(config: RunConfig, prepared: Prepared, shapes: list[BatchShape]) -> list[float]:
    """Return the seconds of one real step at each size, on a copy of the network.

    Side effects: libraries load what they need for a step, on the CPU or the GPU, so that what the
    process holds afterwards is what it will hold beside the tensors. The random state is kept.
    """
    devices = [prepared.device] if prepared.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        dry = replace(prepared, network=copy.deepcopy(prepared.network).train())
        optimizer = _resting_optimizer(dry.network, config)
        # The first one loads libraries and is not counted.  A GPU loads kernels for each size.
        for shape in shapes if devices else shapes[:1]:
            one_step(config, dry, shape, optimizer)
        seconds = [one_step(config, dry, shape, optimizer) for shape in shapes]
    # A step of many micro-batches takes as long as so many of them.
    made = min(config.accumulation_steps, 2)
    return [config.accumulation_steps * passed / made for passed in seconds]


def one_step(
    config: RunConfig,
    prepared: Prepared,
    shape: BatchShape,
    optimizer: torch.optim.Optimizer,
) -> float:
    """Make one real step of the run on noise of a size and return its seconds.

    Side effects: the network's weights move unless the optimizer's rate is zero.
    """
    (passed_s,) = several_steps(config, prepared, shape, optimizer, count=1)
    return passed_s


def several_steps(
    config: RunConfig,
    prepared: Prepared,
    shape: BatchShape,
    optimizer: torch.optim.Optimizer,
    *,
    count: int,
) -> list[float]:
    """Make steps of the run on the same noise and return the seconds of each, see `one_step`."""
    batch = _batch(prepared, shape)
    seconds = []
    for _ in range(count):
        begin_s = time.perf_counter()
        _go(config, prepared, batch, optimizer)
        if prepared.device.type == "cuda":
            torch.cuda.synchronize(prepared.device)
        seconds.append(time.perf_counter() - begin_s)
    return seconds


def _go(
    config: RunConfig, prepared: Prepared, batch: TaskBatch, optimizer: torch.optim.Optimizer
) -> None:
    # From the second micro-batch on a step holds gradients beside activations; more add nothing.
    batches = [batch] * min(config.accumulation_steps, 2)
    limit = config.optimizer.max_gradient_norm
    take_step(learner_of(prepared), batches, optimizer, max_gradient_norm=limit, step=1)


@contextmanager
def _dry(prepared: Prepared, shape: BatchShape) -> Iterator[Prepared]:
    """Hand out a copy of the network and its loss to go through steps with.

    Its tensors have no memory, unless the step is so small that memory is no matter: operators
    that compute are then quicker than those that only pretend to.  A detector has so many that
    make little that it is the other way round.
    """
    small = prepared.device == _CPU and shape.pixels <= DRY_PIXELS
    if small and prepared.model.task != "detection":
        with torch.random.fork_rng([]):
            yield replace(prepared, network=copy.deepcopy(prepared.network).train())
        return
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    network = fake_copy(prepared.network, mode).train()
    loss = fake_copy(prepared.loss, mode)
    with mode:
        # Shapes are the same on every device.
        yield replace(prepared, network=network, loss=loss, device=_CPU)


def _batch(prepared: Prepared, shape: BatchShape) -> Batch | DetectionBatch:
    frames, height, width = shape.frames, shape.height_px, shape.width_px
    classes, channels = len(prepared.manifest.classes), prepared.preprocessing.in_channels
    if prepared.model.task == "detection":
        return _detector_batch(shape, channels)
    # Not pinned, as `collate` does it for a GPU: a device's peak is the same, and tensors without
    # memory can't be.  Noise, so that a real step meets no channel without variance.
    images = torch.randn(frames, channels, height, width)
    on_cpu = prepared.device.type == "cpu"
    distances = None
    if isinstance(prepared.loss, SegmentationLoss) and prepared.loss.reach_px is not None:
        distances = torch.zeros(frames, classes, height, width, dtype=torch.float16)
    return Batch(
        # On a CPU the network runs on it where it is.
        images.contiguous(memory_format=torch.channels_last) if on_cpu else images,
        torch.zeros(frames, classes, height, width, dtype=torch.uint8),
        torch.ones(frames, 1, height, width, dtype=torch.bool),
        distances,
    )


def _detector_batch(shape: BatchShape, channels: int) -> DetectionBatch:
    height, width = shape.height_px, shape.width_px
    images = tuple(torch.randn(channels, height, width) for _ in range(shape.frames))
    side_px = min(height, width, _BOX_PX)
    place = torch.linspace(0, 1, shape.boxes)[:, None]
    corner = place * torch.tensor([width - side_px, height - side_px])
    boxes = torch.cat([corner, corner + side_px], dim=1)
    # The first label that every detector knows as a class.
    labels = torch.ones(shape.boxes, dtype=torch.int64)
    return DetectionBatch(images, (boxes,) * shape.frames, (labels,) * shape.frames, padding_px=0)


def _tensors_of(batch: TaskBatch) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(vars(batch)) if isinstance(leaf, Tensor)]


def _resting_optimizer(network: nn.Module, config: RunConfig) -> torch.optim.Optimizer:
    """Return the run's optimizer at a rate of zero: it keeps what it would and moves nothing.

    A rate that makes training diverge is no matter of memory.
    """
    optimizer = build_optimizer(network, config.optimizer)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    return optimizer


def _fill_optimizer(network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Bring gradients and optimizer to the state between two steps."""
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    with SmallForUnknown():
        optimizer.step()


def _kept_tensors(network: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    for parameter in network.parameters():
        yield parameter
        if parameter.grad is not None:
            yield parameter.grad
    yield from network.buffers()
    for state in optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, Tensor))
