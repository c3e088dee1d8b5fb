"""What the API answers about jobs, models and verdicts; the client reads the same.

Nothing here may import torch, FastAPI or the database: the client and the command line import it.
"""

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Resource(BaseModel):
    # "model" and "model_id" are words of this field; pydantic reserves the prefix by default.
    model_config = ConfigDict(frozen=True, protected_namespaces=())


class JobProgress(_Resource):
    """How far a job is; null until the run has said so."""

    step: int | None = None
    steps_total: int | None = None
    epoch: int | None = None
    epochs_total: int | None = None
    eta_s: float | None = None
    fraction: float | None = None


class JobMetrics(_Resource):
    """The latest value of each metric."""

    step: int | None = None
    epoch: int | None = None
    values: dict[str, float | None] = {}


class Notice(_Resource):
    """Something that was assumed, converted or left out."""

    code: str
    detail: str


class JobError(_Resource):
    """Why a job failed and what to do about it."""

    code: str
    detail: str
    hint: str | None = None


class JobResource(_Resource):
    """A training job."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "job_4k7z1m9q2w8x5v3t",
                    "version": "ver_1d3f5h7k9m2p4r6t",
                    "status": "running",
                    "spec": {"version": "ver_1d3f5h7k9m2p4r6t", "batch_size": 2},
                    "progress": {
                        "step": 120,
                        "steps_total": 400,
                        "epoch": 3,
                        "epochs_total": 10,
                        "eta_s": 310.0,
                        "fraction": 0.3,
                    },
                    "metrics": {"step": 120, "epoch": 3, "values": {"loss": 0.21}},
                    "warnings": [],
                    "error": None,
                    "cancel_requested": False,
                    "attempts": 1,
                    "model": None,
                    "comparison": None,
                    "created_at": "2026-01-05T08:00:00Z",
                    "started_at": "2026-01-05T08:00:02Z",
                    "finished_at": None,
                }
            ]
        }
    )

    id: str
    version: str
    status: Literal[
        "queued",
        "preparing",
        "running",
        "evaluating",
        "succeeded",
        "failed",
        "cancelled",
        "interrupted",
    ]
    spec: dict[str, Any]
    progress: JobProgress
    metrics: JobMetrics
    warnings: tuple[Notice, ...]
    error: JobError | None
    cancel_requested: bool
    attempts: int = Field(description="How often the training program was started.")
    model: str | None = Field(description="The model, once the job has succeeded.")
    comparison: str | None = Field(default=None, description="The comparison it is an arm of.")
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    @property
    def has_ended(self) -> bool:
        """Whether the status can change only by a person's request."""
        return self.status in {"succeeded", "failed", "cancelled"}


class MetricsRecord(_Resource):
    """One metrics event of a run."""

    seq: int
    time: str | None = None
    step: int | None = None
    epoch: int | None = None
    values: dict[str, float | None]


class MemoryLimit(_Resource):
    """What the training program could take."""

    limit_bytes: int
    source: str


class MemoryEstimate(_Resource):
    """What a job takes, from dry steps; seconds as the least and the most that is expected."""

    peak_bytes: int
    phase_bytes: dict[str, int]
    step_s: tuple[float, float]
    training_s: tuple[float, float]
    steps: int


class MemoryStepDown(_Resource):
    """One step down that a job took to fit: why, and what it does to the result."""

    rung: str
    because: str
    consequence: str
    step: int
    time: str | None = None


class PreflightResource(_Resource):
    """Memory and time of a job as estimated before its first step, and what it gave up since."""

    fits: bool
    estimate: MemoryEstimate
    limit: MemoryLimit
    headroom: float
    rungs: list[MemoryStepDown]
    rungs_without_effect: list[str]


class ModelResource(_Resource):
    """A trained model."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "mdl_4k7z1m9q2w8x5v3t",
                    "job": "job_4k7z1m9q2w8x5v3t",
                    "version": "ver_1d3f5h7k9m2p4r6t",
                    "metrics": {"dice": 0.81},
                    "operating_point": {"classes": []},
                    "notes": [],
                    "created_at": "2026-01-05T08:20:00Z",
                }
            ]
        }
    )

    id: str
    job: str
    version: str
    metrics: dict[str, Any]
    operating_point: dict[str, Any]
    notes: tuple[str, ...] = Field(
        default=(), description="What whoever deploys it has to know; each answer says it too."
    )
    parent: str | None = Field(
        default=None, description="The model whose weights these are, at other thresholds."
    )
    origin: dict[str, Any] | None = Field(
        default=None, description="Who chose the other thresholds, why, and what they prove."
    )
    created_at: datetime


class WeightsFileResource(_Resource):
    """A file of weights that a job may start from.

    Attributes:
        name: What ``weights.file`` of a job says.
        byte_count: Its size.
        tensors: How many it holds.
        sha256: Of the file.
        source: Name of the checkpoint that it was made of.
        encoders: Those whose every tensor it has a name for.
        error: Why it can't be used.
    """

    name: str
    byte_count: int
    tensors: int
    sha256: str | None = None
    source: str | None = None
    encoders: tuple[str, ...] = ()
    error: str | None = None


class DefectResource(_Resource):
    """One defect that was found."""

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)

    class_name: str = Field(alias="class")
    score: float
    box: tuple[int, int, int, int] = Field(description="x, y, width, height in pixels.")
    area_px: int
    polygon: tuple[tuple[float, float], ...] = Field(
        description="The outline, pixels; empty where a detector knows the box alone."
    )


Verdict = Literal["OK", "NG", "NOT_INSPECTED"]


class PredictedImage(_Resource):
    """The frame that was inspected."""

    name: str | None = Field(default=None, description="As the sender calls it.")
    width: int | None = Field(description="Null if the deadline passed before it was decoded.")
    height: int | None = Field(description="Null if the deadline passed before it was decoded.")
    sha256: str | None = Field(
        description="Of what was sent; null if the deadline passed before it had arrived whole."
    )


class ClassMask(_Resource):
    """One class's pixels as COCO's compressed run lengths, read by ``pycocotools.mask.decode``."""

    size: tuple[int, int] = Field(description="Height and width, pixels.")
    counts: str


class PredictedBy(_Resource):
    """The model that gave a verdict, and under which name it was asked."""

    id: str
    deployment: str | None
    operating_point: dict[str, Any]
    engine: str | None = Field(
        default=None, description="What ran the network; null where it did not run."
    )


class Prediction(_Resource):
    """The verdict on one frame.

    ``NOT_INSPECTED`` means that the deadline passed, or could not be met: it is never an OK.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "verdict": "NG",
                    "defects": [
                        {
                            "class": "scratch",
                            "score": 0.93,
                            "box": [1204, 377, 88, 6],
                            "area_px": 412,
                            "polygon": [[1204, 377], [1291, 381], [1291, 382]],
                        }
                    ],
                    "image": {
                        "name": "frame.png",
                        "width": 2500,
                        "height": 2000,
                        "sha256": "9f86d081884c7d65…",
                    },
                    "model": {
                        "id": "mdl_4k7z1m9q2w8x5v3t",
                        "deployment": "line-1",
                        "operating_point": {},
                        "engine": "openvino-bf16",
                    },
                    "timings_ms": {
                        "decode": 16.1,
                        "queue": 0.1,
                        "model": 1040.2,
                        "postprocess": 30.5,
                        "total": 1091.9,
                    },
                    "warnings": [],
                    "pictures": {},
                    "ledger_sequence": 48213,
                    "request_id": "req_8w1k3m5p7r9t2v4x",
                }
            ]
        }
    )

    verdict: Verdict
    defects: tuple[DefectResource, ...]
    image: PredictedImage
    model: PredictedBy
    timings_ms: dict[str, float]
    warnings: tuple[str, ...]
    pictures: dict[str, str] = Field(description="PNG files in base64, by what they show.")
    masks: dict[str, ClassMask] | None = Field(
        default=None, description="With ``include=rle``: each class's pixels."
    )
    part_id: str | None = Field(default=None, description="The part that the frame shows.")
    ledger_sequence: int | None = Field(
        default=None,
        description="The entry of the ledger that records this; null, with a warning, if the disk "
        "would not take it, or not by the deadline.",
    )
    request_id: str


class PartPrediction(_Resource):
    """The verdict on a part of several frames: NG if any is, OK only if every one is."""

    part_id: str
    verdict: Verdict
    images: tuple[Prediction, ...] = Field(
        description="In the order sent; empty if the deadline passed before they had arrived."
    )
    warnings: tuple[str, ...] = ()
    timings_ms: dict[str, float]
    ledger_sequence: int | None = Field(
        default=None,
        description="The entry of the ledger that names those of the images; null, with a warning, "
        "if the disk would not take it.",
    )
    request_id: str
