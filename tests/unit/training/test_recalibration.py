"""True statistics at the end of a run, kept if they help."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from norm import plain_state_dict, recalibrate
from tests.training_runs import make_run, prepare_run
from training.config import RecalibrationSection, read_config
from training.loop_state import LoopState
from training.preparation import Prepared
from training.recalibration import TrainingFrames, affordable_frames, recalibrate_if_better


def prepared_run(directory: Path, frames: Path, **changes: Any) -> tuple[Any, Prepared]:
    run = make_run(directory, frames, **changes)
    return read_config(run.config), prepare_run(run)


def weights_of(prepared: Prepared) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in plain_state_dict(prepared.network).items()}


@pytest.mark.parametrize(("best_dice", "kept"), [(0.0, True), (1.0, False)])
def test_recalibrated_statistics_are_kept_if_and_only_if_the_calibration_dice_rises(
    tmp_path: Path, frames: Path, best_dice: float, kept: bool
) -> None:
    config, prepared = prepared_run(tmp_path / "run", frames, recalibration={"max_frames": 3})
    before = weights_of(prepared)
    twin = copy.deepcopy(prepared.network)
    state = LoopState(best_score=best_dice, best_weights=before, seen_pixels=10**8)
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
        assert outcome.calibration_dice_after == prepared.look().score


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
    state = LoopState(best_score=0.0, best_weights=before, seen_pixels=seen_pixels)
    outcome = recalibrate_if_better(config, prepared, state)
    assert not outcome.kept
    assert reason in outcome.reason
    for name, tensor in plain_state_dict(prepared.network).items():
        assert torch.equal(tensor, before[name]), name


WINDOW: dict[str, Any] = {
    "resolution": {"mode": "crop", "height_px": 64, "width_px": 96},
    "norm": {"kind": "bn"},
}
# An encoder without squeeze and excitation, which does not see the whole frame.
TILES: dict[str, Any] = {
    "model": {"encoder": "resnet18", "encoder_depth": 3, "decoder_channels": [8, 8, 8]},
    "memory": {"look_tile_px": 64},
}


@pytest.mark.parametrize(
    ("changes", "seen_pixels", "window_px"),
    [
        # Enough for some windows, and not for two frames of 160x192.
        (WINDOW, 4 * 10**6, (64, 96)),
        (WINDOW, 10**8, None),
        ({**WINDOW, **TILES}, 10**8, (64, 96)),
    ],
)
def test_a_run_on_windows_measures_them_where_whole_frames_are_too_many_or_too_large(
    tmp_path: Path,
    frames: Path,
    changes: dict[str, Any],
    seen_pixels: int,
    window_px: tuple[int, int] | None,
) -> None:
    config, prepared = prepared_run(tmp_path / "run", frames, **changes)
    twin = copy.deepcopy(prepared.network)
    state = LoopState(best_score=0.0, best_weights=weights_of(prepared), seen_pixels=seen_pixels)
    outcome = recalibrate_if_better(config, prepared, state)
    assert outcome.kept
    assert outcome.window_px == window_px
    assert outcome.frames >= 2
    recalibrate(twin, TrainingFrames(prepared, outcome.frames, window_px, config.seed))
    for name, tensor in plain_state_dict(twin).items():
        assert torch.equal(state.best_weights[name], tensor), name


def test_a_window_is_a_part_of_its_frame_and_the_same_each_time(
    tmp_path: Path, frames: Path
) -> None:
    _, prepared = prepared_run(tmp_path / "run", frames)
    whole = list(TrainingFrames(prepared, 5))
    windows = TrainingFrames(prepared, 5, (64, 1000), seed=1)
    first = list(windows)
    for window, again, frame in zip(first, windows, whole, strict=True):
        assert torch.equal(window, again)
        assert window.shape == (1, 1, 64, frame.shape[3])
        tops = range(frame.shape[2] - 64 + 1)
        assert any(torch.equal(frame[:, :, top : top + 64], window) for top in tops)
    others = TrainingFrames(prepared, 5, (64, 1000), seed=2)
    assert any(not torch.equal(a, b) for a, b in zip(first, others, strict=True))


def test_a_run_on_frames_that_memory_does_not_hold_says_why_it_is_not_recalibrated(
    tmp_path: Path, frames: Path
) -> None:
    config, prepared = prepared_run(tmp_path / "run", frames, norm={"kind": "bn"}, **TILES)
    state = LoopState(best_score=0.0, best_weights=weights_of(prepared), seen_pixels=10**8)
    outcome = recalibrate_if_better(config, prepared, state)
    assert not outcome.kept
    assert "memory does not hold whole frames" in outcome.reason


def test_recalibration_costs_at_most_its_share_of_training() -> None:
    section = RecalibrationSection(max_frames=50, max_cost=0.1)
    # 20 epochs of 100 frames are 6,000 forward passes; 30 layers take 17 a frame.
    frames = affordable_frames(section, layers=30, frame_pixels=5e6, seen_pixels=2000 * 5_000_000)
    assert frames == 35
    assert frames * 17 <= 0.1 * 6000 < (frames + 1) * 17
    long = affordable_frames(section, layers=30, frame_pixels=5e6, seen_pixels=10**12)
    assert long == 50
