"""What a person asks for with ``POST /jobs``, and the run configuration it becomes.

The fields and defaults are those of the training program's own configuration.  They are written
twice because the API may not import the training room; a test holds the two together.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from data import AugmentationSpec, CacheSpec, SamplingSpec
from models.detector_wishes import check_detector_wishes
from models.loss_spec import CrossEntropyDice, LossSpec
from models.spec import ModelSpec, NormSpec
from service.settings import WEIGHTS_DIR

RUN_FORMAT_VERSION = 1
# Under the storage root; safe to delete at any time, and nothing for a backup.
DECODED_DIR = "decoded"
# A name and no path: it begins with no dot and holds no separator.
WEIGHTS_NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*\.safetensors$"
BUNDLES_DIR = "bundles"


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class NativeResolution(_Spec):
    """Train on whole frames, every pixel as the camera saw it."""

    mode: Literal["native"] = "native"


class CropResolution(_Spec):
    """Train on windows cut from the frames at native scale.

    Attributes:
        height_px: Of the window.
        width_px: Of the window.
        defect_rate: Share of the windows of defective frames that are placed on a labelled defect,
            in expectation; ``sampling.defect_rate`` takes its place where it is given.
    """

    mode: Literal["crop"]
    height_px: Annotated[int, Field(ge=64, le=32_768)]
    width_px: Annotated[int, Field(ge=64, le=32_768)]
    defect_rate: Annotated[float, Field(ge=0, le=1)] = 0.5


class ResizedResolution(_Spec):
    """Train on whole frames made smaller, to compare with full resolution; judged on native ones.

    Attributes:
        factor: Sides of the resized frame, as a share of its own.
    """

    mode: Literal["resized"]
    factor: Annotated[float, Field(ge=1 / 16, lt=1)]


class DataOptions(_Spec):
    """How frames are read; nothing of it changes a result.

    Attributes:
        workers: Threads that read frames ahead of the network; null takes half of the cores, at
            most 8.
        cache: Decoded frames on disk, shared by all jobs.
    """

    workers: Annotated[int, Field(ge=0, le=64)] | None = None
    cache: CacheSpec = CacheSpec()


Resolution = Annotated[
    NativeResolution | CropResolution | ResizedResolution, Field(discriminator="mode")
]


class Budget(_Spec):
    """When training ends at the latest; the first limit that is reached counts.

    Attributes:
        max_epochs: Passes over the training frames.
        max_steps: Optimizer steps.
        max_minutes: Training time, summed over interruptions.
    """

    max_epochs: Annotated[int, Field(gt=0)] = 20
    max_steps: Annotated[int, Field(gt=0)] | None = None
    max_minutes: Annotated[float, Field(gt=0)] | None = None


class Optimizer(_Spec):
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


class EarlyStopping(_Spec):
    """Stop when validation has not improved for this many epochs."""

    patience_epochs: Annotated[int, Field(gt=0)] = 8


class Recalibration(_Spec):
    """True running statistics at the end, kept if the calibration Dice rises by them.

    Attributes:
        max_frames: Training frames that are measured, at most; of a short run on windows, one
            window of each.
        max_cost: At most this share of what training itself has cost.
    """

    max_frames: Annotated[int, Field(ge=2)] = 64
    max_cost: Annotated[float, Field(gt=0)] = 0.1


class StartWeights(_Spec):
    """Weights to start from; exactly one of the two.

    Attributes:
        file: Name of a file that ``GET /weights`` lists.
        model: An earlier model; classes that both know keep what was learned of them.
    """

    file: Annotated[str, Field(pattern=WEIGHTS_NAME_PATTERN, max_length=100)] | None = None
    model: Annotated[str, Field(pattern=r"^mdl_[0-9a-z]{1,27}$")] | None = None

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if (self.file is None) == (self.model is None):
            raise ValueError("name a file or a model, one of them")
        return self


class Ema(_Spec):
    """An exponential moving average of the weights, judged and shipped in their place.

    Attributes:
        decay: Share of the old average that a step keeps, once the run is long enough for it.
    """

    decay: Annotated[float, Field(gt=0, lt=1)] = 0.998


class Memory(_Spec):
    """What a job may take, and what it may give up to fit.

    Attributes:
        limit_bytes: Peak memory; null is what the device has free when the job starts.
        ladder: Steps down that the job may take, in this order, when it does not fit; with none it
            fails instead.  Those that change what is learned (``bfloat16``, ``crops``) are taken
            only if they are named.
        activation_checkpointing: Compute activations again in the backward pass instead of keeping
            them: less memory, more time, the same result.
        look_tile_px: Side of the tiles in which whole frames are looked at; null looks at them
            whole.  Not for a network that pools or normalizes over the frame, or a detector.
    """

    limit_bytes: Annotated[int, Field(gt=0)] | None = None
    ladder: tuple[
        Literal[
            "bfloat16",
            "activation_checkpointing",
            "accumulation",
            "sampled_slopes",
            "crops",
            "tiles",
        ],
        ...,
    ] = ("activation_checkpointing", "accumulation", "sampled_slopes", "tiles")
    activation_checkpointing: bool = False
    look_tile_px: Annotated[int, Field(ge=64)] | None = None


class Escape(_Spec):
    """A bound on escapes that the operating point must prove, class by class.

    Attributes:
        max_rate: Share of the defective parts of a class that may be called OK.
        confidence: Of the proof.
    """

    max_rate: Annotated[float, Field(gt=0, lt=1)]
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95


class JobSpec(_Spec):
    """A training job on a frozen data-set version; what is left out takes its default.

    Attributes:
        version: The data-set version to train on.
        early_stopping: Null switches it off.
        device: ``auto`` means the device the service is configured with.
        checkpoint_every_s: At most this much work is lost when the machine dies.
        dry_run: Only estimate memory and time (``GET /jobs/{id}/preflight``); nothing is trained.
        accumulation_steps: Batches of one optimizer step, run one after the other.
        recalibration: Null ships the statistics of training.
        ema: Null ships the weights as a step left them.
        devices: Processes that share a step, each on a GPU of its own, or on the CPU.
        calibration_looks: How often in a run, about, calibration frames are looked at; the weights
            of the best look are kept.
        escape: What the operating point must prove; null chooses it by the defects found.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "version": "ver_1d3f5h7k9m2p4r6t",
                    "model": {"architecture": "unet", "encoder": "resnet18"},
                    "norm": {"kind": "auto"},
                    "resolution": {"mode": "native"},
                    "batch_size": 2,
                    "budget": {"max_epochs": 20, "max_minutes": 60},
                }
            ]
        }
    )

    version: Annotated[str, Field(min_length=1, max_length=32)]
    data: DataOptions = DataOptions()
    model: ModelSpec = ModelSpec()
    norm: NormSpec = NormSpec()
    resolution: Resolution = NativeResolution()
    augmentation: AugmentationSpec = AugmentationSpec()
    sampling: SamplingSpec = SamplingSpec()
    batch_size: Annotated[int, Field(ge=1, le=256)] = 2
    budget: Budget = Budget()
    optimizer: Optimizer = Optimizer()
    early_stopping: EarlyStopping | None = EarlyStopping()
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    checkpoint_every_s: Annotated[float, Field(ge=0)] = 30.0
    accumulation_steps: Annotated[int, Field(ge=1, le=256)] = 1
    ema: Ema | None = None
    devices: Annotated[int, Field(ge=1, le=64)] = 1
    recalibration: Recalibration | None = Recalibration()
    loss: LossSpec = CrossEntropyDice()
    weights: StartWeights | None = None
    memory: Memory = Memory()
    dry_run: bool = False
    escape: Escape | None = None
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


def run_config(
    spec: JobSpec, *, manifest: Path, root: Path, device: str, weights_dir: Path | None = None
) -> dict[str, Any]:
    """Return the ``config.json`` of a run.

    Args:
        spec: The job as it was asked for.
        manifest: Absolute path of the version's manifest.
        root: Absolute path that the manifest's file names are relative to.
        device: The installation's device, used where the job says ``auto``.
        weights_dir: Where files of weights lie; ``weights`` under the root if there is no other.
    """
    wishes = spec.model_dump(mode="json", exclude={"version", "data", "weights"})
    options = spec.data.model_dump(mode="json")
    cache = {**options["cache"], "directory": str(root / DECODED_DIR)}
    return {
        "format_version": RUN_FORMAT_VERSION,
        "data": {**options, "manifest": str(manifest), "root": str(root), "cache": cache},
        **wishes,
        "weights": _start_of(spec, root, weights_dir or root / WEIGHTS_DIR),
        "device": device if spec.device == "auto" else spec.device,
    }


def _start_of(spec: JobSpec, root: Path, weights_dir: Path) -> dict[str, str] | None:
    if spec.weights is None:
        return None
    if spec.weights.model is not None:
        return {"bundle": str(root / BUNDLES_DIR / spec.weights.model)}
    assert spec.weights.file is not None  # Its validator has seen to it.
    return {"file": str(weights_dir / spec.weights.file)}
