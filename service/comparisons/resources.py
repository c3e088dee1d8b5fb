"""What the API answers about comparisons; the client and the command line read the same.

Nothing here may import torch, FastAPI or the database.
"""

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.resources import JobError

Measure = Literal["escape", "overkill", "defects", "dice"]


class _Resource(BaseModel):
    model_config = ConfigDict(frozen=True)


class Rate(_Resource):
    """Events of trials with the exact (Clopper-Pearson) 95 % interval; null without a trial."""

    events: int
    n: int
    rate: float | None
    low: float | None
    high: float | None


class SizeRecall(_Resource):
    """Defects found of those whose short side lies from `from_px` to below `below_px`."""

    from_px: float | None
    below_px: float | None
    recall: Rate


class ArmTraining(_Resource):
    """What an arm's training showed the network, and how fast; a resized frame has fewer pixels."""

    shown: Literal["frames", "windows"]
    count: int
    megapixels: float
    seconds: float
    frames_per_s: float = Field(description="Frames or windows, calibration looks included.")
    steps: int
    passes: int
    batch_size: int = Field(description="In force; less than asked for where memory was short.")
    accumulation_steps: int
    ended_by: str


class ArmResult(_Resource):
    """One arm on the native test frames."""

    frames: int
    escape: Rate
    overkill: Rate
    dice: float | None = Field(description="Null of a detector.")
    ap50: float | None = Field(
        description="Average precision at an overlap of 0.5; null of a segmentation network."
    )
    recall: Rate
    recall_by_size: tuple[SizeRecall, ...]
    false_regions_per_frame: float
    training: ArmTraining
    predicted_frames_per_s: float | None
    peak_memory_bytes: int
    peak_memory_of: Literal["gpu", "process"]
    peak_memory_since: Literal["start", "last resume"]
    resized_labels: dict[str, Any] | None = Field(
        description="What resizing did to the training labels; null where none were resized."
    )
    machine: dict[str, Any]


class ArmResource(_Resource):
    """One arm: a job like any other."""

    name: Literal["native", "half", "quarter", "tiled"]
    job: str
    status: str
    fraction: float | None
    error: JobError | None
    model: str | None
    resolution: dict[str, Any]
    budget: dict[str, Any]
    result: ArmResult | None = Field(description="Once the job has succeeded.")


class PairResource(_Resource):
    """One measure of an arm against the reference, paired on the same test frames."""

    arm: str
    reference: str
    measure: Measure
    from_px: float | None = None
    below_px: float | None = None
    n: int = Field(description="Defective frames, good frames, defects, or frames.")
    units: int = Field(description="Parts, or frames where frames were not grouped.")
    value: float | None
    reference_value: float | None
    difference: float | None
    low: float | None = Field(description="95 % interval of the difference; null if none exists.")
    high: float | None
    p: float = Field(description="Of so large a difference, either way, by chance.")
    is_shown: bool


class ComparisonResource(_Resource):
    """The arms side by side, and what the differences between them are worth."""

    id: str
    version: str
    equal: Literal["passes", "steps", "minutes"]
    created_at: datetime
    has_ended: bool
    arms: tuple[ArmResource, ...]
    pairs: tuple[PairResource, ...]
    findings: tuple[str, ...] = Field(description="What it comes to, in sentences.")
    notes: tuple[str, ...] = Field(description="How it was compared, and what limits it.")
    page: str
