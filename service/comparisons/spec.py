"""What a person asks for with ``POST /comparisons``, and the jobs that it becomes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from service.errors import InvalidRequest
from service.jobs.spec import (
    Budget,
    CropResolution,
    JobSpec,
    NativeResolution,
    ResizedResolution,
)

Arm = Literal["native", "half", "quarter", "tiled"]
Equal = Literal["passes", "steps", "minutes"]

_FACTORS: dict[Arm, float] = {"half": 0.5, "quarter": 0.25}
# What a tile's side is unless the frames are small; a few of them fit any device.
_TILE_PX = 512
_SMALLEST_TILE_PX = 64


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Tile(_Spec):
    """The window that the tiled arm trains on.

    Attributes:
        height_px: Rows, a multiple of the network's stride.
        width_px: Columns, likewise.
    """

    height_px: Annotated[int, Field(ge=_SMALLEST_TILE_PX, le=32_768)]
    width_px: Annotated[int, Field(ge=_SMALLEST_TILE_PX, le=32_768)]


class ComparisonSpec(_Spec):
    """The same training at several resolutions, each arm a job of its own.

    Attributes:
        arms: Which; they are trained in this order and compared with ``native``, or with the first
            where native is left out.
        equal: What the arms have in common.  ``passes``: each shows every frame equally often, in
            ``budget.max_epochs`` passes; a tiled pass is as many windows as cover a frame.
            ``steps``: each takes ``budget.max_steps`` optimizer steps of ``batch_size`` frames or
            windows.  ``minutes``: each trains for ``budget.max_minutes`` at most.
        tile: Null takes 512x512 px, or about half of the smallest frame's shorter side.
        job: What all arms share: version, model, norm, batch size, budget, seed.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "arms": ["native", "half", "quarter", "tiled"],
                    "equal": "passes",
                    "tile": {"height_px": 512, "width_px": 512},
                    "job": {"version": "ver_1d3f5h7k9m2p4r6t", "budget": {"max_epochs": 20}},
                }
            ]
        }
    )

    arms: Annotated[tuple[Arm, ...], Field(min_length=2)] = ("native", "half", "quarter", "tiled")
    equal: Equal = "passes"
    tile: Tile | None = None
    job: JobSpec

    @field_validator("arms")
    @classmethod
    def _check_arms(cls, arms: tuple[Arm, ...]) -> tuple[Arm, ...]:
        if len(set(arms)) < len(arms):
            raise ValueError("an arm is named twice")
        return arms


@dataclass(frozen=True)
class FrameSizes:
    """The sizes of a version's frames.

    Attributes:
        mean_area_px: Over all frames.
        shortest_side_px: Of any frame.
    """

    mean_area_px: float
    shortest_side_px: int

    @classmethod
    def of(cls, counts: Mapping[str, int]) -> "FrameSizes":
        """Return them from the version's statistics, ``{"2500x2000": frames}``."""
        sides = {name: [int(side) for side in name.split("x")] for name in counts}
        area_px = sum(math.prod(sides[name]) * frames for name, frames in counts.items())
        return cls(area_px / sum(counts.values()), min(min(pair) for pair in sides.values()))


def arm_specs(spec: ComparisonSpec, sizes: FrameSizes) -> dict[Arm, JobSpec]:
    """Return the job of each arm, in the order in which they are trained.

    Early stopping is off: an arm that stops early has not had the others' budget.

    Raises:
        InvalidRequest: The job's own wishes contradict the comparison; where and why is said.
    """
    _check_job(spec)
    tile = _tile_of(spec, sizes) if "tiled" in spec.arms else None
    specs: dict[Arm, JobSpec] = {}
    for arm in spec.arms:
        resolution: NativeResolution | CropResolution | ResizedResolution = NativeResolution()
        # How many showings of this arm have as many pixels as one of a whole frame.
        showings = 1
        if arm in _FACTORS:
            resolution = ResizedResolution(mode="resized", factor=_FACTORS[arm])
            showings = round(_FACTORS[arm] ** -2)
        elif tile is not None and arm == "tiled":
            resolution = CropResolution(mode="crop", **tile.model_dump())
            showings = math.ceil(sizes.mean_area_px / (tile.height_px * tile.width_px))
        budget = _budget(spec, showings, is_tiled=arm == "tiled")
        wishes = {"resolution": resolution, "budget": budget, "early_stopping": None}
        specs[arm] = spec.job.model_copy(update=wishes)
    return specs


def arm_of(job: JobSpec) -> Arm:
    """Return which arm a job of a comparison is."""
    if isinstance(job.resolution, CropResolution):
        return "tiled"
    if isinstance(job.resolution, ResizedResolution):
        factor = job.resolution.factor
        return next(arm for arm, of_arm in _FACTORS.items() if of_arm == factor)
    return "native"


def equal_of(budget: Budget) -> Equal:
    """Return what the arms of a comparison have in common, from the budget of any of them."""
    if budget.max_minutes is not None:
        return "minutes"
    return "passes" if budget.max_steps is None else "steps"


def _budget(spec: ComparisonSpec, showings: int, *, is_tiled: bool) -> Budget:
    budget = spec.job.budget
    if spec.equal == "steps":
        # An epoch has one step at least.
        return budget.model_copy(update={"max_epochs": budget.max_steps})
    if spec.equal == "minutes":
        # A bound that a quarter of the pixels would reach in a sixteenth of the time is no equal.
        return budget.model_copy(update={"max_epochs": budget.max_epochs * showings})
    return budget.model_copy(
        update={"max_epochs": budget.max_epochs * (showings if is_tiled else 1)}
    )


def _check_job(spec: ComparisonSpec) -> None:
    _check_arms_stay_what_they_are(spec.job)
    if "early_stopping" in spec.job.model_fields_set and spec.job.early_stopping is not None:
        raise InvalidRequest(
            "budget_not_equal",
            "an arm that stops early has not had the budget of the others",
            where="/job/early_stopping",
            hint="leave it out; a comparison trains to the end of its budget",
        )
    needed = {"passes": None, "steps": "max_steps", "minutes": "max_minutes"}[spec.equal]
    for limit in ("max_steps", "max_minutes"):
        given = getattr(spec.job.budget, limit) is not None
        if given and limit != needed:
            raise InvalidRequest(
                "budget_not_equal",
                f"with equal {spec.equal}, {limit} may end one arm sooner than another",
                where=f"/job/budget/{limit}",
                hint="leave it out, or choose what is equal by it: steps for max_steps, minutes "
                "for max_minutes",
            )
        if not given and limit == needed:
            raise InvalidRequest(
                "budget_missing",
                f"equal {spec.equal} need a number of them",
                where=f"/job/budget/{limit}",
                hint=f"give budget.{limit}",
            )


def _check_arms_stay_what_they_are(job: JobSpec) -> None:
    if job.resolution != NativeResolution():
        raise InvalidRequest(
            "resolution_is_the_arms",
            "a comparison's job has no resolution of its own: each arm has one",
            where="/job/resolution",
            hint="leave it out, and name the arms",
        )
    if "crops" in job.memory.ladder:
        raise InvalidRequest(
            "resolution_is_the_arms",
            "an arm that does not fit would train on crops under another arm's name",
            where="/job/memory/ladder",
            hint="leave crops out; an arm that does not fit fails, which is a finding",
        )
    if job.dry_run:
        raise InvalidRequest(
            "comparison_of_nothing",
            "a dry run trains no model that could be compared",
            where="/job/dry_run",
            hint="leave it out, or ask for dry runs with POST /jobs",
        )


def _tile_of(spec: ComparisonSpec, sizes: FrameSizes) -> Tile:
    stride_px = spec.job.model.stride_px
    if spec.tile is None:
        side_px = min(_TILE_PX, sizes.shortest_side_px // 2) // stride_px * stride_px
        side_px = max(side_px, _SMALLEST_TILE_PX)
        tile = Tile(height_px=side_px, width_px=side_px)
    else:
        tile = spec.tile
    for side_px in (tile.height_px, tile.width_px):
        if side_px % stride_px:
            raise InvalidRequest(
                "crop_not_divisible",
                f"a tile's side of {side_px} px is no multiple of the network's stride, "
                f"{stride_px} px",
                where="/tile",
                hint=f"use multiples of {stride_px}",
            )
    if tile.height_px * tile.width_px >= sizes.mean_area_px:
        raise InvalidRequest(
            "tile_not_smaller",
            f"a tile of {tile.width_px}x{tile.height_px} px holds as much as a frame",
            where="/tile",
            hint="name a smaller tile, or leave the arm tiled out",
        )
    return tile
