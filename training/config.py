"""The configuration of a run: one frozen object, read once from ``config.json``."""

import json
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from data import AugmentationSpec, CacheSpec, SamplingSpec
from models.certificate import EscapeConstraint
from models.detector_wishes import check_detector_wishes
from models.loss_spec import CrossEntropyDice, LossSpec
from models.spec import ModelSpec, NormSpec
from training.errors import ConfigError

Positive = Annotated[int, Field(gt=0)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CacheSection(CacheSpec):
    """Where decoded frames are kept.

    Attributes:
        directory: May be shared by any number of runs.  None keeps them in the run's directory
            until it has finished.
    """

    directory: Path | None = None


class DataSection(_Section):
    """Where the frames are, and how they are read.

    Attributes:
        manifest: Path of the version's manifest.
        root: Directory that the manifest's file names are relative to.
        workers: Threads that read frames ahead of the network; 0 reads each when it is needed, None
            takes half of the cores, at most 8.  They change no result.
        cache: Decoded frames on disk; it changes no result.
    """

    manifest: Path
    root: Path
    workers: Annotated[int, Field(ge=0, le=64)] | None = None
    cache: CacheSection = CacheSection()


class NativeResolution(_Section):
    """Frames at their own size."""

    mode: Literal["native"] = "native"


class CropResolution(_Section):
    """Windows of native pixels, for devices that can't hold a frame; evaluation stays whole.

    Attributes:
        height_px: Of the window.
        width_px: Of the window.
        defect_rate: Share of windows of defective frames that are put on a labelled pixel, in
            expectation; ``sampling.defect_rate`` takes its place where it is given.
    """

    mode: Literal["crop"]
    height_px: Annotated[int, Field(ge=64)]
    width_px: Annotated[int, Field(ge=64)]
    defect_rate: Annotated[float, Field(ge=0, le=1)] = 0.5


class ResizedResolution(_Section):
    """Whole frames, resized: for the comparison with full resolution; evaluation stays native.

    Attributes:
        factor: Sides of the resized frame, as a share of its own: 0.5 is half, a quarter of the
            pixels.
    """

    mode: Literal["resized"]
    factor: Annotated[float, Field(ge=1 / 16, lt=1)]


Resolution = NativeResolution | CropResolution | ResizedResolution


class Budget(_Section):
    """How long to train; the first limit that is reached ends it.

    Attributes:
        max_epochs: Passes over the training frames.
        max_steps: Optimizer steps.
        max_minutes: Training time, summed over interruptions.  It makes the result depend on the
            machine's speed.
    """

    max_epochs: Positive = 20
    max_steps: Positive | None = None
    max_minutes: Annotated[float, Field(gt=0)] | None = None


class OptimizerSection(_Section):
    """AdamW under a cosine schedule with linear warm-up.

    Attributes:
        learning_rate: The schedule's peak.
        weight_decay: On weights of two or more dimensions alone.
        warmup_steps: Length of the warm-up.
        max_gradient_norm: Gradients are clipped to it.
    """

    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    warmup_steps: Annotated[int, Field(ge=0)] = 20
    max_gradient_norm: Annotated[float, Field(gt=0)] = 5.0


class StartWeights(_Section):
    """Weights to start from; exactly one of the two.

    Attributes:
        file: A ``.safetensors`` file with an encoder's or a whole network's tensors.
        bundle: The directory of an earlier model's bundle.
    """

    file: Path | None = None
    bundle: Path | None = None

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if (self.file is None) == (self.bundle is None):
            raise ValueError("name a file or a bundle, one of them")
        return self


class EarlyStopping(_Section):
    """Stop when calibration frames see no more gain.

    Attributes:
        patience_epochs: Epochs without a better calibration Dice.
    """

    patience_epochs: Positive = 8


class RecalibrationSection(_Section):
    """True running statistics at the end, kept if the calibration Dice rises by them.

    Attributes:
        max_frames: Training frames that are measured, at most; of a short run on windows, one
            window of each.
        max_cost: At most this share of what training itself has cost, in pixels that went through
            the network; fewer frames are measured where it takes that.
    """

    max_frames: Annotated[int, Field(ge=2)] = 64
    max_cost: Annotated[float, Field(gt=0)] = 0.1


Rung = Literal[
    "bfloat16", "activation_checkpointing", "accumulation", "sampled_slopes", "crops", "tiles"
]


class MemorySection(_Section):
    """What the run may take, and what it may give up to fit.

    Attributes:
        limit_bytes: Peak memory; None is what the device has free.
        ladder: Steps down that a run may take, in this order, when it does not fit; none refuses
            it instead.  Those that change what is learned (``bfloat16``, ``crops``) are taken only
            if they are named.
        activation_checkpointing: Compute activations again in the backward pass instead of keeping
            them; it changes no result.
        look_tile_px: Side of the tiles in which whole frames are looked at, borders included; None
            looks at them whole.  Probabilities differ by `models.tiling.TILING_TOLERANCE` at most,
            and statistics are not recalibrated.
    """

    limit_bytes: Annotated[int, Field(gt=0)] | None = None
    ladder: tuple[Rung, ...] = (
        "activation_checkpointing",
        "accumulation",
        "sampled_slopes",
        "tiles",
    )
    activation_checkpointing: bool = False
    look_tile_px: Annotated[int, Field(ge=64)] | None = None


class EmaSection(_Section):
    """An exponential moving average of the weights, judged and shipped in their place.

    Attributes:
        decay: Share of the old average that a step keeps, once the run is long enough for it: it
            rises as (1 + t) / (10 + t) with the steps t (`training.weight_average`).
    """

    decay: Annotated[float, Field(gt=0, lt=1)] = 0.998


class EscapeSection(_Section):
    """A bound on escapes that the operating point must prove, class by class.

    Attributes:
        max_rate: Share of the defective parts of a class that may be called OK.
        confidence: Of the proof.
    """

    max_rate: Annotated[float, Field(gt=0, lt=1)]
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95


class RunConfig(_Section):
    """Everything that decides what a run computes, see ``docs/training.md``.

    Attributes:
        batch_size: Frames or windows that the network runs on at once.
        accumulation_steps: Batches of one optimizer step, run one after the other, so that a device
            that holds one frame learns from several a step.
        devices: Processes that share a step, each on a GPU of its own, or on the CPU.
        calibration_looks: How often in a run, about, calibration frames are looked at; the weights
            of the best look are kept. Where frames are large a look costs as much as many steps.
        escape: What the operating point must prove on calibration frames; None chooses it by pixel
            Dice and by the defects found.
    """

    format_version: Literal[1] = 1
    data: DataSection
    model: ModelSpec = ModelSpec()
    norm: NormSpec = NormSpec()
    resolution: Annotated[Resolution, Field(discriminator="mode")] = NativeResolution()
    augmentation: AugmentationSpec = AugmentationSpec()
    sampling: SamplingSpec = SamplingSpec()
    batch_size: Annotated[int, Field(ge=1, le=256)] = 2
    budget: Budget = Budget()
    optimizer: OptimizerSection = OptimizerSection()
    early_stopping: EarlyStopping | None = EarlyStopping()
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    device: str = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    checkpoint_every_s: Annotated[float, Field(ge=0)] = 30.0
    accumulation_steps: Annotated[int, Field(ge=1, le=256)] = 1
    ema: EmaSection | None = None
    devices: Annotated[int, Field(ge=1, le=64)] = 1
    recalibration: RecalibrationSection | None = RecalibrationSection()
    loss: LossSpec = CrossEntropyDice()
    weights: StartWeights | None = None
    memory: MemorySection = MemorySection()
    dry_run: bool = False
    escape: EscapeSection | None = None
    calibration_looks: Annotated[int, Field(ge=1, le=1000)] = 12

    @model_validator(mode="after")
    def _check_detector(self) -> Self:
        if self.model.task == "detection":
            check_detector_wishes(
                self.model.architecture,
                self.loss,
                asks_tiles=self.memory.look_tile_px is not None,
            )
        return self

    @property
    def escape_constraint(self) -> EscapeConstraint | None:
        """``escape`` as the certificate takes it."""
        if self.escape is None:
            return None
        return EscapeConstraint(self.escape.max_rate, self.escape.confidence)

    @property
    def images_per_step(self) -> int:
        """Frames or windows that an optimizer step learns from, at most."""
        return self.batch_size * self.accumulation_steps * self.devices

    @property
    def in_lockstep(self) -> bool:
        """Whether forward passes of several processes wait for each other, as pooled windows do."""
        return self.devices > 1 and self.norm.ranks == "pooled"

    @property
    def norm_in_force(self) -> NormSpec:
        """What ``norm`` comes to for steps of so many images; never ``auto``."""
        return self.norm.for_batch(self.images_per_step)

    @property
    def resize_factor(self) -> float:
        """Sides of a frame as the network sees it, as a share of its own; 1 unless resized."""
        return self.resolution.factor if isinstance(self.resolution, ResizedResolution) else 1.0


def read_config(path: Path) -> RunConfig:
    """Read a run's configuration.

    Raises:
        ConfigError: If it is missing, no JSON, or a field is unknown or out of range; the field is
            named.
    """
    try:
        return RunConfig.model_validate(json.loads(path.read_bytes()))
    except FileNotFoundError as error:
        raise ConfigError(
            "config_missing",
            f"{path.name} is not in {path.parent}",
            hint="a run is a directory that holds config.json",
        ) from error
    except json.JSONDecodeError as error:
        raise ConfigError(
            "config_invalid",
            f"{path.name}, line {error.lineno}: {error.msg}",
            hint="write it as JSON",
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        pointer = "/" + "/".join(str(part) for part in first["loc"])
        raise ConfigError(
            "config_invalid",
            f"{path.name}, {pointer}: {first['msg']}",
            hint="see docs/training.md for the fields",
        ) from error
