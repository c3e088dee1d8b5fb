"""A comparison becomes jobs that are alike in all but what is compared."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from service.comparisons.spec import ComparisonSpec, FrameSizes, arm_of, arm_specs, equal_of
from service.errors import InvalidRequest
from service.jobs.spec import CropResolution, JobSpec

LARGE = FrameSizes.of({"2500x2000": 30})


def arms_of(sizes: FrameSizes = LARGE, **wishes: Any) -> dict[Any, JobSpec]:
    job = {"version": "ver_1", **wishes.pop("job", {})}
    return arm_specs(ComparisonSpec.model_validate({"job": job, **wishes}), sizes)


def test_arms_differ_in_resolution_and_passes_alone() -> None:
    arms = arms_of(job={"seed": 7, "batch_size": 1, "budget": {"max_epochs": 3}})
    assert list(arms) == ["native", "half", "quarter", "tiled"]
    assert [arm_of(job) for job in arms.values()] == list(arms)
    assert [job.resolution.model_dump() for job in arms.values()] == [
        {"mode": "native"},
        {"mode": "resized", "factor": 0.5},
        {"mode": "resized", "factor": 0.25},
        {"mode": "crop", "height_px": 512, "width_px": 512, "defect_rate": 0.5},
    ]
    # 20 windows of 512x512 hold a frame of 5 megapixels.
    assert [job.budget.max_epochs for job in arms.values()] == [3, 3, 3, 3 * 20]
    rest = {
        str(job.model_dump(exclude={"resolution": True, "budget": True})) for job in arms.values()
    }
    assert len(rest) == 1
    assert all(job.early_stopping is None and job.seed == 7 for job in arms.values())


def test_equal_steps_are_the_same_steps_and_equal_minutes_the_same_minutes() -> None:
    steps = arms_of(equal="steps", job={"budget": {"max_steps": 500}})
    assert {job.budget.max_steps for job in steps.values()} == {500}
    assert {job.budget.max_epochs for job in steps.values()} == {500}
    minutes = arms_of(equal="minutes", job={"budget": {"max_minutes": 30, "max_epochs": 10}})
    assert {job.budget.max_minutes for job in minutes.values()} == {30}
    assert [job.budget.max_epochs for job in minutes.values()] == [10, 40, 160, 200]
    assert [equal_of(arms["half"].budget) for arms in (arms_of(), steps, minutes)] == [
        "passes",
        "steps",
        "minutes",
    ]


@given(st.integers(140, 4000), st.integers(140, 4000), st.sampled_from([3, 4, 5]))
def test_a_tile_that_nobody_named_is_trainable_and_smaller_than_a_frame(
    width: int, height: int, depth: int
) -> None:
    sizes = FrameSizes.of({f"{width}x{height}": 5, "4000x4000": 1})
    job = {"model": {"encoder_depth": depth}}
    tile = arms_of(sizes, arms=["native", "tiled"], job=job)["tiled"].resolution
    assert isinstance(tile, CropResolution)
    assert tile.height_px == tile.width_px <= 512
    assert tile.height_px % 2**depth == 0
    assert 4 * tile.height_px**2 <= 4 * width * height


@pytest.mark.parametrize(
    ("wishes", "code", "where"),
    [
        (
            {"job": {"resolution": {"mode": "resized", "factor": 0.5}}},
            "resolution_is_the_arms",
            "/job/resolution",
        ),
        ({"job": {"dry_run": True}}, "comparison_of_nothing", "/job/dry_run"),
        (
            {"job": {"memory": {"ladder": ["accumulation", "crops"]}}},
            "resolution_is_the_arms",
            "/job/memory/ladder",
        ),
        (
            {"job": {"early_stopping": {"patience_epochs": 3}}},
            "budget_not_equal",
            "/job/early_stopping",
        ),
        ({"job": {"budget": {"max_minutes": 3}}}, "budget_not_equal", "/job/budget/max_minutes"),
        ({"equal": "steps"}, "budget_missing", "/job/budget/max_steps"),
        (
            {"equal": "minutes", "job": {"budget": {"max_minutes": 3, "max_steps": 5}}},
            "budget_not_equal",
            "/job/budget/max_steps",
        ),
        ({"tile": {"height_px": 100, "width_px": 512}}, "crop_not_divisible", "/tile"),
        ({"tile": {"height_px": 2016, "width_px": 2528}}, "tile_not_smaller", "/tile"),
    ],
)
def test_what_would_not_be_a_comparison_is_refused_with_place_and_remedy(
    wishes: dict[str, Any], code: str, where: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        arms_of(**wishes)
    assert (caught.value.code, caught.value.where) == (code, where)
    assert caught.value.hint


@pytest.mark.parametrize("arms", [["native"], ["half", "half"], ["native", "third"]])
def test_arms_are_at_least_two_different_known_ones(arms: list[str]) -> None:
    with pytest.raises(ValidationError):
        arms_of(arms=arms)
