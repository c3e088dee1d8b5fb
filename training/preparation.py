"""Before the first step: check the data, measure it, build and convert the network."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from data import CropSpec, DataError, FrameCache, FrameDataset, Manifest, SplitName
from models import (
    ModelSpec,
    Preprocessing,
    SegmentationLoss,
    WeightsReport,
    architecture_named,
    build_model,
    example_input,
    load_weights,
    read_bundle_source,
    read_weights_file,
)
from models.loss_spec import Boundary
from models.tiling import SquareTiles
from norm import (
    ConversionReport,
    CrossIterationBatchNorm2d,
    convert_batchnorm,
    missing_kernels,
)
from norm.other_normalizations import PER_IMAGE_KINDS
from training.batches import count_steps, plan_draws, plan_steps, planned_counts
from training.config import CropResolution, RunConfig
from training.detection import DetectionTask, DetectorLoss
from training.detection_preparation import (
    boxes_of,
    check_task,
    measure_boxes,
    settle_detector,
)
from training.devices import device_of, precision_of
from training.errors import ConfigError
from training.evaluation import whole_frames
from training.events import EventLog
from training.measurements import Measurements, measure
from training.memory.checkpointing import recomputed_modules
from training.memory.look_tiles import look_tiles
from training.optimizer_step import Learner
from training.resizing import ResizedLabels, tell_resizing
from training.segmentation import SegmentationTask
from training.task import Look, Task


@dataclass
class Prepared:
    """Everything a run needs before its first step.

    Attributes:
        model: The configuration's, with what is derived from the training frames.
        task: How its network is trained.
    """

    manifest: Manifest
    train: FrameDataset
    calibration: FrameDataset
    test: FrameDataset
    measurements: Measurements
    preprocessing: Preprocessing
    model: ModelSpec
    network: nn.Module
    loss: SegmentationLoss | DetectorLoss
    task: Task
    conversion: ConversionReport
    device: torch.device
    precision: torch.dtype
    # The training frames as calibration and test frames are looked at: whole, and not varied.
    train_whole: FrameDataset
    weights: WeightsReport | None = None
    resized_labels: ResizedLabels | None = None
    # Modules that are computed again in the backward pass.
    recomputed: tuple[str, ...] = ()
    # In which whole frames are looked at; None looks at them whole.
    look_tiles: SquareTiles | None = None

    def look(self) -> Look:
        """Score the network as it is on the calibration frames.

        Raises:
            DivergedError: It answers with what is no number.
        """
        return self.task.look(self.network, whole_frames(self.calibration))


def prepare(
    config: RunConfig, events: EventLog, cache: FrameCache | None = None, *, rank: int = 0
) -> Prepared:
    """Read the manifest, measure the training frames and build the converted network.

    Args:
        config: The run's.
        events: Told what is assumed and left as it is.
        cache: Of decoded frames.
        rank: Of this process among those of the run; it decides the device.

    Raises:
        ConfigError: If the data can't be read or can't be trained on.
    """
    manifest = _read_manifest(config)
    check_task(manifest, config.model)
    bit_depth = _check_trainable(manifest, config)
    device = device_of(config, rank)
    train_whole = _whole_frames(manifest, config, "train", cache)
    measurements = measure(train_whole, config.resize_factor)
    train = _training_frames(manifest, config, cache)
    model, boxes = config.model, None
    if model.task == "detection":
        boxes = measure_boxes(train.items, manifest.classes, config)
        model = settle_detector(config, manifest, boxes, events)
    preprocessing = _preprocessing_of(config, manifest, measurements, bit_depth)
    _check_steps(train, config, events)
    network, weights, conversion = _build_network(config, model, manifest, train, measurements)
    _tell_weights(weights, events)
    _tell_conversion(conversion, events)
    _tell_kernels(network, device, events)
    _warn_of_conversions(manifest, preprocessing.in_channels, events)
    _tell_sampling(train, config, events)
    resized_labels = tell_resizing(train.items, manifest.classes, config, events, boxes)
    precision = precision_of(config, device)
    tiles = look_tiles(config, network, preprocessing)
    return Prepared(
        manifest=manifest,
        train=train,
        calibration=_whole_frames(manifest, config, "calibration", cache),
        test=_whole_frames(manifest, config, "test", cache),
        measurements=measurements,
        preprocessing=preprocessing,
        model=model,
        network=network.to(device),
        loss=_loss_of(config, model, measurements).to(device),
        task=_task_of(config, model, manifest, preprocessing, device, tiles),
        conversion=conversion,
        device=device,
        precision=precision,
        train_whole=train_whole,
        weights=weights,
        resized_labels=resized_labels,
        recomputed=recomputed_modules(config, network, preprocessing),
        look_tiles=tiles,
    )


def _read_manifest(config: RunConfig) -> Manifest:
    try:
        return Manifest.read(config.data.manifest)
    except DataError as error:
        raise ConfigError(error.code, error.detail, hint=error.hint) from error


def _training_frames(
    manifest: Manifest, config: RunConfig, cache: FrameCache | None
) -> FrameDataset:
    """Return the training frames as training sees them: varied, and windows if it is told so."""
    return FrameDataset(
        manifest,
        config.data.root,
        "train",
        seed=config.seed,
        augmentation=config.augmentation,
        crop=_crop_of(config),
        cache=cache,
        boxes=boxes_of(config),
    )


def _preprocessing_of(
    config: RunConfig, manifest: Manifest, measurements: Measurements, bit_depth: Literal[8, 16]
) -> Preprocessing:
    return Preprocessing(
        in_channels=1 if len(measurements.mean) == 1 else 3,
        bit_depth=bit_depth,
        mean=measurements.mean,
        std=measurements.std,
        stride_px=config.model.stride_px,
        bayer=manifest.bayer,
        resize_factor=config.resize_factor,
    )


def _tell_conversion(conversion: ConversionReport, events: EventLog) -> None:
    for left in conversion.left:
        # A normalization of each image by itself has nothing to gain from another kind.
        if left.kind not in PER_IMAGE_KINDS:
            events.warning("norm_not_converted", f"{left.name} stays as it is: {left.reason}")


def _tell_kernels(network: nn.Module, device: torch.device, events: EventLog) -> None:
    if device.type != "cuda":
        return
    if any(isinstance(module, CrossIterationBatchNorm2d) for module in network.modules()):
        missing = missing_kernels(device)
        if missing is not None:
            events.warning("norm_kernels_missing", f"a step takes several times as long: {missing}")


def learner_of(prepared: Prepared) -> Learner:
    """Return what a training step works on."""
    return Learner(
        prepared.network, prepared.loss, prepared.device, prepared.precision, prepared.recomputed
    )


def _loss_of(
    config: RunConfig, model: ModelSpec, measurements: Measurements
) -> SegmentationLoss | DetectorLoss:
    if model.task == "detection":
        return DetectorLoss()
    return SegmentationLoss(torch.tensor(measurements.foreground_rate), config.loss)


def _task_of(
    config: RunConfig,
    model: ModelSpec,
    manifest: Manifest,
    preprocessing: Preprocessing,
    device: torch.device,
    tiles: SquareTiles | None,
) -> Task:
    if model.task == "detection":
        return DetectionTask(model, preprocessing, manifest.classes, device)
    reach_px = config.loss.reach_px if isinstance(config.loss, Boundary) else None
    return SegmentationTask(preprocessing, manifest.classes, device, reach_px, tiles)


def _whole_frames(
    manifest: Manifest, config: RunConfig, split: SplitName, cache: FrameCache | None
) -> FrameDataset:
    return FrameDataset(
        manifest,
        config.data.root,
        split,
        seed=config.seed,
        cache=cache,
        boxes=boxes_of(config),
    )


def _build_network(
    config: RunConfig,
    model: ModelSpec,
    manifest: Manifest,
    train: FrameDataset,
    measurements: Measurements,
) -> tuple[nn.Module, WeightsReport | None, ConversionReport]:
    """Build the network from the run's seed, give it its start, and convert its normalization."""
    torch.manual_seed(config.seed)
    channels = len(measurements.mean)
    network = build_model(
        model,
        class_count=len(manifest.classes),
        in_channels=channels,
        foreground_rate=measurements.foreground_rate,
    )
    weights = _start_from(config, network, manifest.classes)
    network = network.to(memory_format=torch.channels_last)
    norm = config.norm_in_force
    assert norm.kind != "auto"  # `norm_in_force` has chosen.
    options = dict(norm.options)
    if norm.kind == "brn":
        # Batch Renormalization's schedule is scaled to the job's length.
        _, options["total_steps"] = count_steps(train.items, config)
    example = example_input(model, channels, count=2)
    network, conversion = convert_batchnorm(network, example, kind=norm.kind, **options)
    return network, weights, conversion


def _start_from(
    config: RunConfig, network: nn.Module, classes: Sequence[str]
) -> WeightsReport | None:
    if config.weights is None:
        return None
    if config.weights.bundle is not None:
        source = read_bundle_source(config.weights.bundle)
    else:
        assert config.weights.file is not None  # The configuration has seen to it.
        source = read_weights_file(config.weights.file)
    architecture = architecture_named(config.model.architecture)
    return load_weights(network, architecture, source, classes)


def _tell_weights(weights: WeightsReport | None, events: EventLog) -> None:
    if weights is None:
        return
    events.write("weights", source=weights.source, detail=weights.summary())
    by_remark: dict[str, list[str]] = {}
    for name, remark in (weights.converted | weights.random).items():
        by_remark.setdefault(remark, []).append(name)
    for remark, names in by_remark.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        events.warning("weights_not_as_they_are", f"{names[0]}{more}: {remark}")


def _check_trainable(manifest: Manifest, config: RunConfig) -> Literal[8, 16]:
    for split in ("train", "calibration", "test"):
        if not manifest.subset(split).items:
            raise ConfigError(
                "split_empty",
                f"the {split} split has no frame",
                hint="make a version with more frames or other split shares",
            )
    if not any(item.is_defective for item in manifest.subset("train").items):
        raise ConfigError(
            "no_defects",
            "no training frame shows a defect",
            hint="label defects, or make a version whose training split holds some",
        )
    depths = {item.bit_depth for item in manifest.items}
    if len(depths) > 1:
        raise ConfigError(
            "mixed_bit_depth",
            "the version mixes 8-bit and 16-bit frames",
            hint="make a version with frames of one depth",
        )
    if isinstance(config.resolution, CropResolution):
        stride_px = config.model.stride_px
        for side_px in (config.resolution.height_px, config.resolution.width_px):
            if side_px % stride_px:
                raise ConfigError(
                    "crop_not_divisible",
                    f"a crop side of {side_px} px is no multiple of the network's stride, "
                    f"{stride_px} px",
                    hint=f"use multiples of {stride_px}",
                )
    return 16 if depths == {16} else 8


def _crop_of(config: RunConfig) -> CropSpec | None:
    if not isinstance(config.resolution, CropResolution):
        return None
    return CropSpec(
        height_px=config.resolution.height_px,
        width_px=config.resolution.width_px,
        defect_rate=config.resolution.defect_rate,
    )


def _warn_of_conversions(manifest: Manifest, channels: int, events: EventLog) -> None:
    mono = sum(item.channels == 1 for item in manifest.items)
    if channels == 3 and mono:
        events.warning(
            "mono_as_colour",
            f"{mono} mono frames are repeated in three channels, the others are in colour",
        )


def _check_steps(train: FrameDataset, config: RunConfig, events: EventLog) -> None:
    """Refuse an epoch without a step, and say how much is left out to keep devices in lockstep."""
    batches = len(plan_draws(train.items, config, epoch=0))
    planned = sum(len(step) for step in plan_steps(train.items, config, epoch=0))
    if planned == 0:
        raise ConfigError(
            "too_few_frames",
            f"an epoch is {batches} batches, less than one for each of {config.devices} devices",
            hint="use fewer devices, or norm.ranks separate",
        )
    if planned < batches:
        events.warning(
            "batches_left_out",
            f"{batches - planned} of {batches} batches are left out of each epoch, other ones each "
            f"time, because norm.ranks pooled needs as many on each of {config.devices} devices",
        )


def _tell_sampling(train: FrameDataset, config: RunConfig, events: EventLog) -> None:
    """Write down that training sees defects at another rate than the line."""
    counts = planned_counts(train.items, config)
    if counts is None:
        return
    wanted = config.sampling.defect_rate
    defective = sum(item.is_defective for item in train.items)
    events.write(
        "sampling",
        defect_rate=counts.defect_rate,
        frames_with_defects=defective / len(train.items),
        showings_an_epoch=counts.defective + counts.clean,
    )
    if counts.clean == 0:
        events.warning(
            "defect_rate_not_kept",
            f"a defect_rate of {wanted} is asked for, and there is no good training frame to keep "
            "it with: every frame shows a defect; add good frames or train on crops",
        )
