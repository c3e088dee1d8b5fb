"""The rows the service keeps; files live in storage, rows name them by digest."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    LargeBinary,
    MetaData,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
    false,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from data.bayer import BayerPattern


def now_utc() -> datetime:
    """Return the current time, timezone-aware."""
    return datetime.now(UTC)


class UtcDateTime(TypeDecorator[datetime]):
    """A point in time, aware and in UTC on every database; SQLite alone would forget the zone.

    Raises:
        ValueError: A naive datetime is about to be stored.
    """

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return ``value`` in UTC without its zone, as the column stores it."""
        del dialect
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value!r} has no time zone; use now_utc()")
        return value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return the stored time with its zone."""
        del dialect
        return None if value is None else value.replace(tzinfo=UTC)


class Base(DeclarativeBase):
    """The one metadata of all tables."""

    # Named constraints can be altered by a later migration on every database.
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {datetime: UtcDateTime}  # noqa: RUF012 - SQLAlchemy's own protocol.


class Dataset(Base):
    """A named, growing collection of frames and their labels."""

    __tablename__ = "datasets"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(200), unique=True)
    task: Mapped[str] = mapped_column(String(32))
    # Null until declared: classes are then the union of what the labels name.
    classes: Mapped[list[str] | None] = mapped_column(JSON)
    # Declared once, when frames are raw mosaics; null for ordinary pictures.
    bayer: Mapped[BayerPattern | None] = mapped_column(String(4))
    created_at: Mapped[datetime] = mapped_column(default=now_utc)
    # Kept by service.database.counters, as are Item.labelled and Label.waiting.
    item_count: Mapped[int] = mapped_column(default=0, server_default=text("0"))
    labelled_count: Mapped[int] = mapped_column(default=0, server_default=text("0"))
    label_count: Mapped[int] = mapped_column(default=0, server_default=text("0"))
    # Class name to the number of labels that carry it.
    class_counts: Mapped[dict[str, int]] = mapped_column(
        JSON, default=dict, server_default=text("'{}'")
    )


class Item(Base):
    """One frame of a data set."""

    __tablename__ = "items"
    __table_args__ = (
        UniqueConstraint("dataset_id", "key"),
        UniqueConstraint("dataset_id", "sha256"),
        Index("ix_items_labelled", "dataset_id", "labelled", "key"),
    )

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    dataset_id: Mapped[str] = mapped_column(ForeignKey("datasets.id"))
    name: Mapped[str] = mapped_column(String(512))
    # What pairs a frame with its label, see data.sample_key.
    key: Mapped[str] = mapped_column(String(512))
    sha256: Mapped[str] = mapped_column(String(64))
    byte_count: Mapped[int]
    width: Mapped[int]
    height: Mapped[int]
    channels: Mapped[int]
    bit_depth: Mapped[int]
    notes: Mapped[list[str]] = mapped_column(JSON, default=list)
    created_at: Mapped[datetime] = mapped_column(default=now_utc)
    labelled: Mapped[bool] = mapped_column(default=False, server_default=false())


class Label(Base):
    """One label file; it may arrive before its frame and waits for it by ``key``."""

    __tablename__ = "labels"
    __table_args__ = (
        UniqueConstraint("dataset_id", "key"),
        Index("ix_labels_waiting", "dataset_id", "waiting", "key"),
    )

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    dataset_id: Mapped[str] = mapped_column(ForeignKey("datasets.id"))
    name: Mapped[str] = mapped_column(String(512))
    key: Mapped[str] = mapped_column(String(512))
    kind: Mapped[str] = mapped_column(String(16))
    sha256: Mapped[str] = mapped_column(String(64))
    width: Mapped[int]
    height: Mapped[int]
    # Class name to the number of its defects.
    classes: Mapped[dict[str, int]] = mapped_column(JSON)
    # data.Labels as JSON, read once at upload: freezing a version then opens no label file.
    # Outlines can be long, so lists of labels leave it out.
    content: Mapped[str] = mapped_column(Text, deferred=True)
    created_at: Mapped[datetime] = mapped_column(default=now_utc)
    # Its frame has not arrived.
    waiting: Mapped[bool] = mapped_column(default=False, server_default=false())

    @property
    def carried_classes(self) -> list[str]:
        """The classes of which the label has a defect."""
        return [name for name, defects in self.classes.items() if defects]


class Import(Base):
    """An archive on its way into a data set."""

    __tablename__ = "imports"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    dataset_id: Mapped[str] = mapped_column(ForeignKey("datasets.id"))
    status: Mapped[str] = mapped_column(String(16))
    # None if it was never computed in one go, and then the digest of the pieces is known.
    archive_sha256: Mapped[str | None] = mapped_column(String(64))
    pieces_digest: Mapped[str | None] = mapped_column(String(64))
    # None for archives of before this was recorded.
    unverified_bytes: Mapped[int | None] = mapped_column(BigInteger)
    done: Mapped[int] = mapped_column(default=0)
    total: Mapped[int | None]
    outcomes: Mapped[list[dict[str, Any]]] = mapped_column(JSON, default=list)
    error: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    # As the sender named it, or None; once the import runs, what it is and what speaks for it.
    layout: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    owner: Mapped[str | None] = mapped_column(String(32))
    lease_until: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(default=now_utc)


class Version(Base):
    """An immutable, content-addressed state of a data set with its split."""

    __tablename__ = "versions"
    __table_args__ = (
        UniqueConstraint("dataset_id", "digest"),
        Index("ix_versions_newest", "dataset_id", "created_at", "id"),
    )

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    dataset_id: Mapped[str] = mapped_column(ForeignKey("datasets.id"))
    digest: Mapped[str] = mapped_column(String(64))
    classes: Mapped[list[str]] = mapped_column(JSON)
    split: Mapped[dict[str, Any]] = mapped_column(JSON)
    statistics: Mapped[dict[str, Any]] = mapped_column(JSON)
    warnings: Mapped[list[str]] = mapped_column(JSON, default=list)
    created_at: Mapped[datetime] = mapped_column(default=now_utc)


class Measurement(Base):
    """What was found when a stored file was last read whole; any data set may hold the file."""

    __tablename__ = "measurements"

    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    # Which way of measuring; another one measures again.
    method: Mapped[int]
    # Of the file as it was read: one that differs now is read again.
    byte_count: Mapped[int] = mapped_column(BigInteger)
    modified_ns: Mapped[int] = mapped_column(BigInteger)
    # Code and detail of a file that could not be read.
    error: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    # data.FrameMeasurement without its two signatures; null for a mask, which is only verified.
    numbers: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    layout: Mapped[bytes | None] = mapped_column(LargeBinary)
    detail: Mapped[bytes | None] = mapped_column(LargeBinary)
    measured_at: Mapped[datetime] = mapped_column(default=now_utc)


class Job(Base):
    """A training job; its run directory under storage is ``runs/{id}``."""

    __tablename__ = "jobs"
    __table_args__ = (Index("ix_jobs_claim", "status", "created_at"),)

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    version_id: Mapped[str] = mapped_column(ForeignKey("versions.id"))
    status: Mapped[str] = mapped_column(String(16))
    spec: Mapped[dict[str, Any]] = mapped_column(JSON)
    progress: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    metrics: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    warnings: Mapped[list[dict[str, Any]]] = mapped_column(JSON, default=list)
    error: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    cancel_requested: Mapped[bool] = mapped_column(default=False)
    # How often the training program was started, and how often in a row without a new checkpoint.
    attempts: Mapped[int] = mapped_column(default=0)
    fruitless_attempts: Mapped[int] = mapped_column(default=0)
    owner: Mapped[str | None] = mapped_column(String(32))
    lease_until: Mapped[datetime | None]
    model_id: Mapped[str | None] = mapped_column(String(32))
    created_at: Mapped[datetime] = mapped_column(default=now_utc)
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class Model(Base):
    """A trained model; its bundle under storage is ``bundles/{id}``."""

    __tablename__ = "models"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    version_id: Mapped[str] = mapped_column(ForeignKey("versions.id"))
    report: Mapped[dict[str, Any]] = mapped_column(JSON)
    # The model whose weights these are, at other thresholds; null for what a job made.
    parent_id: Mapped[str | None] = mapped_column(String(32))
    # Who chose those thresholds, why, and what they were to prove.
    origin: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    created_at: Mapped[datetime] = mapped_column(default=now_utc)


class EngineTask(Base):
    """The preparation of a model's engines; its files under storage are ``exports/{model_id}``."""

    __tablename__ = "engine_tasks"

    model_id: Mapped[str] = mapped_column(ForeignKey("models.id"), primary_key=True)
    # queued, running, done or failed.
    status: Mapped[str] = mapped_column(String(16))
    error: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    owner: Mapped[str | None] = mapped_column(String(32))
    lease_until: Mapped[datetime | None]
    requested_at: Mapped[datetime] = mapped_column(default=now_utc)
    finished_at: Mapped[datetime | None]


class Deployment(Base):
    """A name that ``/predict`` serves, the model behind it, and what it must prove."""

    __tablename__ = "deployments"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    model_id: Mapped[str] = mapped_column(ForeignKey("models.id"))
    # The models before, the latest last, each with the override it was served under: the way back.
    trail: Mapped[list[dict[str, Any]]] = mapped_column(JSON, default=list)
    promotion_constraint: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    # How the served model stood to the constraint when it was let through.
    gate: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    keeping: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    shadow_run_id: Mapped[int | None]
    updated_at: Mapped[datetime] = mapped_column(default=now_utc, onupdate=now_utc)


class DeploymentEvent(Base):
    """One change of a deployment; rows are added and never changed."""

    __tablename__ = "deployment_events"
    __table_args__ = (Index("ix_deployment_events_order", "deployment", "id"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    deployment: Mapped[str] = mapped_column(ForeignKey("deployments.name"))
    kind: Mapped[str] = mapped_column(String(32))
    by: Mapped[str | None] = mapped_column(String(200))
    reason: Mapped[str | None] = mapped_column(Text)
    model_before: Mapped[str | None] = mapped_column(String(32))
    model_after: Mapped[str] = mapped_column(String(32))
    gate: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    details: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    # Null if the disk would not take the ledger's entry.
    ledger_sequence: Mapped[int | None] = mapped_column(BigInteger)
    at: Mapped[datetime] = mapped_column(default=now_utc)


class ShadowRun(Base):
    """A model that runs beside a deployment, from when it was put there until it was taken away."""

    __tablename__ = "shadow_runs"

    id: Mapped[int] = mapped_column(primary_key=True)
    deployment: Mapped[str] = mapped_column(ForeignKey("deployments.name"))
    model_id: Mapped[str] = mapped_column(ForeignKey("models.id"))
    # sample_rate, and how many disagreements are kept.
    wish: Mapped[dict[str, Any]] = mapped_column(JSON)
    started_at: Mapped[datetime] = mapped_column(default=now_utc)
    ended_at: Mapped[datetime | None]


class ShadowCount(Base):
    """What became of the frames of a shadow run while one model was served."""

    __tablename__ = "shadow_counts"

    shadow_run_id: Mapped[int] = mapped_column(ForeignKey("shadow_runs.id"), primary_key=True)
    served_model_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    compared: Mapped[int] = mapped_column(default=0)
    same_verdict: Mapped[int] = mapped_column(default=0)
    agreed: Mapped[int] = mapped_column(default=0)
    dropped: Mapped[int] = mapped_column(default=0)
    failed: Mapped[int] = mapped_column(default=0)


class KeptFrame(Base):
    """A frame that the line sent and that was kept, with the answer it got."""

    __tablename__ = "kept_frames"
    __table_args__ = (
        Index("ix_kept_frames_newest", "deployment", "cause", "id"),
        Index("ix_kept_frames_sha256", "file_sha256"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    deployment: Mapped[str] = mapped_column(ForeignKey("deployments.name"))
    # ng, uncertain or disagreement.
    cause: Mapped[str] = mapped_column(String(16))
    # Of what was inspected; a camera's buffer is kept as a picture file of another digest.
    image_sha256: Mapped[str] = mapped_column(String(64))
    file_sha256: Mapped[str] = mapped_column(String(64))
    media_type: Mapped[str] = mapped_column(String(32))
    byte_count: Mapped[int] = mapped_column(BigInteger)
    width: Mapped[int]
    height: Mapped[int]
    answer: Mapped[dict[str, Any]] = mapped_column(JSON)
    shadow_run_id: Mapped[int | None] = mapped_column(ForeignKey("shadow_runs.id"))
    shadow_answer: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    kept_at: Mapped[datetime] = mapped_column(default=now_utc)


class IdempotencyRecord(Base):
    """The answer once given to an ``Idempotency-Key``."""

    __tablename__ = "idempotency_records"

    key: Mapped[str] = mapped_column(String(200), primary_key=True)
    request_sha256: Mapped[str] = mapped_column(String(64))
    status: Mapped[int | None]
    body: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    created_at: Mapped[datetime] = mapped_column(default=now_utc)
