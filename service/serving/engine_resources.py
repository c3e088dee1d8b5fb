"""What the API answers about models' engines; the client and the command line read the same.

Nothing here may import torch, FastAPI or the database.
"""

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.resources import JobError


class _Resource(BaseModel):
    model_config = ConfigDict(frozen=True)


class EngineResource(_Resource):
    """One engine that was tried for a model, or why it may not serve it."""

    name: str
    device: str
    median_ms: float | None = Field(description="Of the network on one frame.")
    times_faster: float | None = Field(description="Than eager torch, timed in turns with it.")
    refusal: str | None = Field(description="Why it may not serve; null if it may.")
    parity: dict[str, Any] | None = Field(
        description="Golden frames compared, how many were judged differently and which, the "
        "largest difference of a score, the smallest margin to a threshold."
    )


class EnginesResource(_Resource):
    """What is known of a model's engines on this machine."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "mdl_4k7z1m9q2w8x5v3t",
                    "status": "queued",
                    "error": None,
                    "unusable": None,
                    "chosen": None,
                    "machine": None,
                    "golden": None,
                    "frame_size": None,
                    "engines": [],
                    "requested_at": "2026-01-05T08:30:00Z",
                    "finished_at": None,
                }
            ]
        }
    )

    model: str
    status: Literal["none", "queued", "running", "done", "failed"]
    error: JobError | None = None
    unusable: str | None = Field(
        default=None, description="Why eager torch serves although engines were prepared."
    )
    chosen: str | None = Field(default=None, description="What serves the model here.")
    machine: dict[str, Any] | None = Field(default=None, description="Where it was measured.")
    golden: dict[str, Any] | None = Field(default=None, description="Which frames were compared.")
    frame_size: tuple[int, int] | None = Field(default=None, description="Height, width timed.")
    engines: tuple[EngineResource, ...] = ()
    requested_at: datetime | None = None
    finished_at: datetime | None = None
