"""What the API takes and answers about deployments; the client reads the same.

Nothing here may import torch, FastAPI or the database: the client and the command line import it.
"""

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

# One in a million would take millions of parts to prove: what is smaller is a slip of the pen.
Rate = Annotated[float, Field(ge=1e-6, lt=1)]
Confidence = Annotated[float, Field(gt=0.5, le=1 - 1e-6)]
Person = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=200)]
Reason = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=2000)]
ModelId = Annotated[str, Field(min_length=1, max_length=32)]


class _Wish(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class _Resource(BaseModel):
    model_config = ConfigDict(frozen=True, protected_namespaces=())


class EscapeLimit(_Wish):
    """A bound on escapes, class by class, that calibration parts must prove; as a job's ``escape``.

    Attributes:
        max_rate: Share of the defective parts of a class that may be called OK.
        confidence: Of the proof.
        per_class: Other bounds for some classes.
    """

    max_rate: Rate
    confidence: Confidence = 0.95
    per_class: dict[str, Rate] = {}

    def rate_of(self, class_name: str) -> float:
        """Return the share that may escape of the parts with one class of defect."""
        return self.per_class.get(class_name, self.max_rate)


class OverkillLimit(_Wish):
    """A bound on good parts called NG, which test parts must prove.

    Attributes:
        max_rate: Share of the good parts that may be called NG.
        confidence: Of the proof.
    """

    max_rate: Rate
    confidence: Confidence = 0.95


class Constraint(_Wish):
    """What a model must prove before a line is served by it."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"escape": {"max_rate": 0.01, "confidence": 0.95}}]}
    )

    escape: EscapeLimit | None = None
    overkill: OverkillLimit | None = None

    @model_validator(mode="after")
    def _check_not_empty(self) -> Self:
        if self.escape is None and self.overkill is None:
            raise ValueError("name escape, overkill or both; null instead of {} takes a limit away")
        return self


class Override(_Wish):
    """Lets a model through that does not prove what it should; logged with its reason."""

    reason: Reason
    by: Person


class Shortfall(_Resource):
    """One limit that is not proven.

    Attributes:
        limit: ``escape`` or ``overkill``.
        class_name: The class of defect, for escapes.
        max_rate: What was asked.
        confidence: With which confidence.
        proven: The upper bound that is proven at that confidence; None where nothing is.
        parts: Defective parts, or good ones for overkill, that the evidence rests on.
        missing_parts: How many more it takes, if nothing goes wrong with any of them.
        detail: The same as a sentence.
    """

    limit: Literal["escape", "overkill"]
    class_name: str | None
    max_rate: float
    confidence: float
    proven: float | None
    parts: int
    missing_parts: int
    detail: str


class Gate(_Resource):
    """How a model stands to its deployment's constraint.

    Attributes:
        outcome: ``no_constraint``: nothing was asked, so nothing is promised; ``met``;
            ``overridden``: let through all the same; ``refused``.
        proven: Sentences on what is proven.
        shortfalls: What is not.
        override: Who let it through and why.
        notes: What else there is to know.
    """

    outcome: Literal["no_constraint", "met", "overridden", "refused"]
    proven: tuple[str, ...] = ()
    shortfalls: tuple[Shortfall, ...] = ()
    override: Override | None = None
    notes: tuple[str, ...] = ()


class UncertainWish(_Wish):
    """Which frames count as uncertain.

    Attributes:
        margin: A frame is uncertain if its verdict would be another one with all thresholds moved
            by so much, regions' areas aside.
    """

    margin: Annotated[float, Field(gt=0, lt=0.5)] = 0.1


class Keeping(_Wish):
    """Which frames are kept for relabelling, and how many.

    Attributes:
        ng: Whether those called NG are.
        uncertain: Which uncertain ones are; null keeps none for that.
        max_bytes: The oldest are deleted beyond it.
        max_age_days: They are deleted after it.
    """

    ng: bool = True
    uncertain: UncertainWish | None = None
    max_bytes: Annotated[int, Field(gt=0)] = 4 * 1024**3
    max_age_days: Annotated[float, Field(gt=0, le=36_500)] = 30.0

    @model_validator(mode="after")
    def _check_not_empty(self) -> Self:
        if not self.ng and self.uncertain is None:
            raise ValueError("neither ng nor uncertain frames: DELETE ends keeping instead")
        return self


class ShadowWish(_Wish):
    """A model to run beside the served one, whose answers go nowhere but into a comparison.

    Attributes:
        model: Which.
        sample_rate: Share of frames that it sees; the same picture is always in or always out.
        max_frames: Disagreements that are kept, the latest.
        max_bytes: Of their pictures.
    """

    model: ModelId
    sample_rate: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_frames: Annotated[int, Field(gt=0, le=100_000)] = 500
    max_bytes: Annotated[int, Field(gt=0)] = 1024**3


class DeploymentResource(_Resource):
    """A name that ``/predict`` serves.

    Attributes:
        previous_model: What a rollback serves.
        gate: How the model stood to the constraint when it was let through.
        keep: Which frames are kept for relabelling.
        shadow: The model that runs beside.
        warnings: What whoever looks at it has to know; each answer of ``/predict`` says it too.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "name": "line-1",
                    "model": "mdl_4k7z1m9q2w8x5v3t",
                    "previous_model": None,
                    "constraint": {"escape": {"max_rate": 0.01, "confidence": 0.95}},
                    "gate": {"outcome": "met", "proven": [], "shortfalls": []},
                    "keep": None,
                    "shadow": None,
                    "warnings": [],
                    "updated_at": "2026-01-05T08:30:00Z",
                }
            ]
        }
    )

    name: str
    model: str
    previous_model: str | None
    constraint: Constraint | None = None
    gate: Gate
    keep: Keeping | None = None
    shadow: str | None = None
    warnings: tuple[str, ...] = ()
    updated_at: datetime


class DeploymentEventResource(_Resource):
    """One change of a deployment, as it was made.

    Attributes:
        kind: ``created``, ``promoted``, ``rolled_back``, ``constraint_changed``, ``overridden``,
            ``shadow_on``, ``shadow_off``, ``keeping_changed``.
        by: As the request said; null if it did not.
        model_before: Served before it.
        model_after: Served after it.
        gate: Its outcome, for changes that it judged.
        details: What else was changed.
        ledger_sequence: The entry of the ledger that tells of it between predictions.
    """

    id: int
    kind: str
    at: datetime
    by: str | None
    reason: str | None
    model_before: str | None
    model_after: str
    gate: Gate | None
    details: dict[str, Any]
    ledger_sequence: int | None


class OperatingPointPreview(_Resource):
    """What other thresholds of a model would come to, without making a model of them.

    Attributes:
        operating_point: Thresholds, areas and the certificate of each class.
        unproven: Classes without proof, with the defective calibration parts that each lacks.
        now: Escape and overkill of the model's own thresholds by test part, with 95 % intervals.
        then: Those of the other thresholds, on the same parts.
        notes: How far the figures carry.
    """

    operating_point: dict[str, Any]
    unproven: dict[str, int]
    now: dict[str, Any]
    then: dict[str, Any]
    notes: tuple[str, ...]


class KeepingResource(_Resource):
    """Which frames a deployment keeps for relabelling, and what there is of them.

    Attributes:
        keep: What is asked; null keeps nothing any more.
        frames: How many are there.
        bytes: Of their files.
        not_kept: Frames that found no place in the queue, or on the disk, since the service began.
    """

    keep: Keeping | None
    frames: int
    bytes: int
    not_kept: int


class KeptFrameResource(_Resource):
    """A frame that the line sent and that was kept.

    Attributes:
        cause: ``ng``, ``uncertain`` or ``disagreement``.
        image_sha256: Of what was inspected, as in the ledger.
        file_sha256: Of the picture file that is kept; another one where a camera's buffer came.
        answer: What ``/predict`` answered, pictures left out.
        shadow_answer: What the shadow model said, of a disagreement.
        image: Where the picture is.
    """

    id: int
    cause: Literal["ng", "uncertain", "disagreement"]
    kept_at: datetime
    image_sha256: str
    file_sha256: str
    media_type: str
    byte_count: int
    width: int
    height: int
    answer: dict[str, Any]
    shadow_answer: dict[str, Any] | None
    image: str


class ShadowCountResource(_Resource):
    """What became of the frames of a shadow run while one model was served.

    Attributes:
        served_model: The model that the line was answered by.
        compared: Frames that both looked at.
        same_verdict: Rate of the same verdict, with its exact 95 % interval.
        agreed: Rate of the same verdict and defects that meet, with its exact 95 % interval.
        dropped: Frames that the shadow did not see because the line was busy.
        failed: Frames of which it said nothing.
    """

    served_model: str
    compared: int
    same_verdict: dict[str, Any]
    agreed: dict[str, Any]
    dropped: int
    failed: int


class ShadowResource(_Resource):
    """A model that runs beside a deployment, and how far it agrees.

    Attributes:
        disagreements: How many are kept.
        last_error: Why it last said nothing of a frame, since the service began.
    """

    model: str
    sample_rate: float
    max_frames: int
    max_bytes: int
    started_at: datetime
    ended_at: datetime | None
    counts: tuple[ShadowCountResource, ...]
    disagreements: int
    last_error: str | None
