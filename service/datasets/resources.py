"""What the API answers about data sets; the client reads the same.

Nothing here may import FastAPI, the database or anything slow: the client imports it.
"""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.errors import FileOutcome


class _Resource(BaseModel):
    model_config = ConfigDict(frozen=True)


ImportStatus = Literal["queued", "running", "succeeded", "succeeded_with_problems", "failed"]


class ImportFailure(_Resource):
    """Why an import failed as a whole and what to do about it."""

    code: str
    detail: str
    file: str | None = None
    where: str | None = None
    hint: str | None = None


class LayoutResource(_Resource):
    """How an archive's files belong together."""

    name: Annotated[
        str | None,
        Field(description="Null for labels of several formats, each for frames of its own."),
    ]
    is_named: Annotated[bool, Field(description="Whether the request named it.")]
    evidence: Annotated[str | None, Field(description="What speaks for it.")] = None
    notes: Annotated[list[str], Field(description="What was left out or converted.")] = []


class Obstacle(_Resource):
    """Something that keeps a version from being frozen."""

    code: str
    detail: str
    hint: str


class DatasetResource(_Resource):
    """A data set and how far it is labelled."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "ds_4k7zq0m3r8t1v5x9",
                    "name": "bearing-rings",
                    "task": "segmentation",
                    "classes": ["scratch", "pit"],
                    "bayer": None,
                    "created_at": "2025-03-01T08:30:00Z",
                    "counts": {
                        "items": 120,
                        "labelled": 118,
                        "unlabelled": 2,
                        "labels_without_image": 0,
                    },
                    "class_counts": {"pit": 31, "scratch": 54},
                    "problems": [
                        {
                            "code": "missing_label",
                            "detail": "2 frames have no label",
                            "hint": "Upload their labels, or say what they are when freezing.",
                        }
                    ],
                }
            ]
        }
    )

    id: str
    name: str
    task: str
    classes: list[str] | None
    bayer: Annotated[
        str | None, Field(description="The pattern that its frames, raw mosaics, are read by.")
    ] = None
    created_at: datetime
    counts: dict[str, int]
    class_counts: Annotated[dict[str, int], Field(description="Labels that carry each class.")]
    problems: list[Obstacle]


class UploadResource(_Resource):
    """What became of each file, in the order sent."""

    files: list[FileOutcome]
    counts: dict[str, int]


class LabelResource(_Resource):
    """A label file."""

    id: str
    name: str
    kind: str
    width: int
    height: int
    classes: dict[str, int]
    created_at: datetime


class ItemResource(_Resource):
    """A frame and its label."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "itm_2f5h8k1n4q7t0w3z",
                    "name": "images/part_01.png",
                    "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
                    "byte_count": 4_812_331,
                    "width": 2500,
                    "height": 2000,
                    "channels": 1,
                    "bit_depth": 8,
                    "notes": [],
                    "created_at": "2025-03-01T08:31:00Z",
                    "is_stored": True,
                    "label": None,
                }
            ]
        }
    )

    id: str
    name: str
    sha256: str
    byte_count: int
    width: int
    height: int
    channels: int
    bit_depth: int
    notes: list[str]
    created_at: datetime
    is_stored: Annotated[
        bool,
        Field(
            description="False if its file is missing, has another size, or was found damaged by "
            "a health report; uploading the frame again restores it."
        ),
    ]
    label: LabelResource | None


class TransferResource(_Resource):
    """How an archive arrived."""

    sha256: Annotated[
        str | None,
        Field(
            description="Of the whole archive; null if the service was restarted while it arrived."
        ),
    ]
    pieces_digest: Annotated[
        str | None,
        Field(
            description="Of its pieces in order: each link is the SHA-256 of the link before (32 "
            "bytes, at first zeros), the piece's length (8 bytes, big-endian) and its SHA-256. "
            "Null if it came as a whole."
        ),
    ]
    unverified_bytes: Annotated[
        int | None,
        Field(
            description="How many bytes came without a digest of their sender's, so that damage on "
            "the way would go unseen; null for archives of before this was recorded."
        ),
    ]


class ImportResource(_Resource):
    """An archive on its way into a data set."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "imp_3g6j9m2p5s8v1y4b",
                    "dataset": "ds_4k7zq0m3r8t1v5x9",
                    "status": "succeeded_with_problems",
                    "done": 240,
                    "total": 240,
                    "rejected": [
                        {
                            "file": "images/part_07.jpg",
                            "outcome": "rejected",
                            "item": None,
                            "code": "image_damaged",
                            "detail": "The JPEG data are cut off or damaged.",
                            "where": None,
                            "hint": "Copy it again from the camera.",
                            "notes": [],
                        }
                    ],
                    "error": None,
                    "layout": {
                        "name": "yolo",
                        "is_named": False,
                        "evidence": "yolo: data.yaml and 120 .txt in a label folder",
                        "notes": ["classes as data.yaml numbers them: scratch, pit"],
                    },
                    "transfer": {
                        "sha256": None,
                        "pieces_digest": "9f86d081884c7d659a2feaa0c55ad015"
                        "a3bf4f1b2b0b822cd15d6c15b0f00a08",
                        "unverified_bytes": 0,
                    },
                    "created_at": "2025-03-01T08:30:00Z",
                }
            ]
        }
    )

    id: str
    dataset: str
    status: ImportStatus
    done: Annotated[int, Field(description="Files dealt with.")]
    total: int | None
    rejected: list[FileOutcome]
    error: ImportFailure | None
    layout: Annotated[
        LayoutResource | None, Field(description="Null until it is recognized, unless named.")
    ] = None
    # Answers recorded under an Idempotency-Key before there was one lack it.
    transfer: TransferResource | None = None
    created_at: datetime

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.status not in {"queued", "running"}


class VersionResource(_Resource):
    """A version of a data set; it never changes."""

    id: str
    dataset: str
    digest: Annotated[str, Field(description="SHA-256 of the manifest.")]
    classes: list[str]
    split: dict[str, Any]
    statistics: dict[str, Any]
    warnings: Annotated[list[str], Field(description="What was assumed or left out.")]
    created_at: datetime


class MovedFrame(_Resource):
    """A frame that is in another split."""

    name: str
    before: str
    after: str


class FindingResource(_Resource):
    """One thing that is wrong with a version."""

    code: str
    severity: Literal["error", "warning"]
    detail: str
    count: Annotated[int, Field(description="Frames, defects or classes concerned.")]
    examples: Annotated[list[str], Field(description="Some of them.")]
    frames: Annotated[
        list[list[str]], Field(description="For each example the names of the frames to look at.")
    ]
    is_cut: Annotated[bool, Field(description="Whether there are more examples.")]
    hint: str


class MeasuredPixels(_Resource):
    """How many frames' pixels the report knows."""

    measured: Annotated[int, Field(description="Measured, or found unreadable.")]
    of: int
    oldest: Annotated[
        datetime | None, Field(description="When the file read longest ago was last read whole.")
    ]

    @property
    def is_complete(self) -> bool:
        """Whether every frame was looked at."""
        return self.measured == self.of


class VersionHealthResource(_Resource):
    """What is wrong with a version, errors first; empty if nothing was found."""

    version: str
    findings: list[FindingResource]
    pixels: Annotated[
        MeasuredPixels, Field(description="While incomplete, ask again: measuring goes on.")
    ]
    unchecked: Annotated[list[str], Field(description="What was not looked at, and why.")]
    page: Annotated[str, Field(description="The same for people, as one HTML file.")]

    @property
    def has_errors(self) -> bool:
        """Whether anything keeps training or its judgement from working."""
        return any(finding.severity == "error" for finding in self.findings)


class VersionDiffResource(_Resource):
    """What changed between two versions; a frame is known by its picture, not by its name."""

    older: str
    newer: str
    counts: Annotated[
        dict[str, int], Field(description="How many of each; the lists may end earlier.")
    ]
    added: list[str]
    removed: list[str]
    renamed: Annotated[list[tuple[str, str]], Field(description="Old and new name.")]
    relabelled: list[str]
    moved: Annotated[list[MovedFrame], Field(description="Frames in another split.")]
    demosaiced_otherwise: Annotated[
        list[str], Field(description="Frames that are read under another Bayer pattern.")
    ]
    classes_added: list[str]
    classes_removed: list[str]
