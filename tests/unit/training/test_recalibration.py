"""True statistics at the end of a run, kept if they help."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from norm import plain_state_dict, recalibrate
from tests.training_runs import make_run
from training.calibration_look import calibration_dice, mean_dice
from training.config import RecalibrationSection, read_config
from training.events import EventLog, read_events
from training.loop_state import LoopState
from training.preparation import Prepared, prepare
from training.recalibration import TrainingFrames, affordable_frames, recalibrate_if_better
from training.run import execute


def prepared_run(directory: Path, frames: Path, **changes: Any) -> tuple[Any, Prepared]:
    run = make_run(directory, frames, **changes)
    config = read_config(run.config)
    events = EventLog(run.events)
    prepared = prepare(config, events)
    events.close()
    return config, prepared


def weights_of(prepared: Prepared) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in plain_state_dict(prepared.network).items()}


@pytest.mark.parametrize(("best_dice", "kept"), [(0.0, True), (1.0, False)])
def test_recalibrated_statistics_are_kept_if_and_only_if_the_calibration_dice_rises(
    tmp_path: Path, frames: Path, best_dice: float, kept: bool
) -> None:
    config, prepared = prepared_run(tmp_path / "run", frames, recalibration={"max_frames": 3})
    before = weights_of(prepared)
    twin = copy.deepcopy(prepared.network)
    state = LoopState(best_dice=best_dice, best_weights=before, seen_pixels=10**8)
    outcome = recalibrate_if_better(config, prepared, state)

    expected = recalibrate(twin, TrainingFrames(prepared, 3))
    assert outcome.kept == kept
    assert (outcome.frames, outcome.layers) == (3, len(expected.recalibrated))
    assert outcome.calibration_dice_before == best_dice
    measured = plain_state_dict(twin) if kept else before
    for name, tensor in plain_state_dict(prepared.network).items():
        assert torch.equal(tensor, measured[name]), name
        assert torch.equal(state.best_weights[name], measured[name]), name
    if kept:
        assert outcome.calibration_dice_after == mean_dice(calibration_dice(prepared))


@pytest.mark.parametrize(
    ("changes", "seen_pixels", "reason"),
    [
        ({"recalibration": None}, 10**8, "switched off"),
        ({"norm": {"kind": "gn"}}, 10**8, "'gn'"),
        ({"norm": {"kind": "frozen"}}, 10**8, "'frozen'"),
        ({}, 10**5, "too short"),
    ],
)
def test_what_is_not_recalibrated_says_why_and_is_not_touched(
    tmp_path: Path, frames: Path, changes: dict[str, Any], seen_pixels: int, reason: str
) -> None:
    config, prepared = prepared_run(tmp_path / "run", frames, **changes)
    before = weights_of(prepared)
    state = LoopState(best_dice=0.0, best_weights=before, seen_pixels=seen_pixels)
    outcome = recalibrate_if_better(config, prepared, state)
    assert not outcome.kept
    assert reason in outcome.reason
    for name, tensor in plain_state_dict(prepared.network).items():
        assert torch.equal(tensor, before[name]), name


def test_recalibration_costs_at_most_its_share_of_training() -> None:
    section = RecalibrationSection(max_frames=50, max_cost=0.1)
    # 20 epochs of 100 frames are 6,000 forward passes; 30 layers take 17 a frame.
    frames = affordable_frames(section, layers=30, frame_pixels=5e6, seen_pixels=2000 * 5_000_000)
    assert frames == 35
    assert frames * 17 <= 0.1 * 6000 < (frames + 1) * 17
    long = affordable_frames(section, layers=30, frame_pixels=5e6, seen_pixels=10**12)
    assert long == 50


@pytest.mark.slow
def test_a_run_tells_both_numbers_and_ships_what_is_better(tmp_path: Path, frames: Path) -> None:
    run = make_run(
        tmp_path / "run",
        frames,
        budget={"max_steps": 4},
        recalibration={"max_frames": 4, "max_cost": 100},
    )
    assert execute(run.path) == 0
    stated = json.loads(run.report.read_text())["recalibration"]
    (event,) = (e for e in read_events(run.events) if e["kind"] == "recalibration")
    assert {name: event[name] for name in stated} == stated
    better = stated["calibration_dice_after"] > stated["calibration_dice_before"]
    assert stated["kept"] == better
