"""Checkpoints are whole, few, and recognised when damaged."""

from pathlib import Path

import pytest
import torch

from training.checkpoint import load_latest_checkpoint, save_checkpoint


def save(directory: Path, *steps: int) -> None:
    for step in steps:
        save_checkpoint(directory, step, {"step": step, "weight": torch.full((3,), float(step))})


def test_the_newest_is_loaded_and_two_are_kept(tmp_path: Path) -> None:
    save(tmp_path / "checkpoints", 1, 2, 10)
    state, damaged = load_latest_checkpoint(tmp_path / "checkpoints")
    assert state is not None
    assert state["step"] == 10
    assert damaged == []
    kept = sorted(path.name for path in (tmp_path / "checkpoints").glob("*.pt"))
    assert kept == ["step_00000002.pt", "step_00000010.pt"]


@pytest.mark.parametrize("damage", ["cut", "flip", "digest"])
def test_a_damaged_one_is_named_and_the_one_before_is_used(tmp_path: Path, damage: str) -> None:
    save(tmp_path, 1, 2)
    newest = tmp_path / "step_00000002.pt"
    content = bytearray(newest.read_bytes())
    if damage == "cut":
        newest.write_bytes(content[:100])
    elif damage == "flip":
        content[len(content) // 2] ^= 1
        newest.write_bytes(content)
    else:
        newest.with_suffix(".sha256").unlink()
    state, damaged = load_latest_checkpoint(tmp_path)
    assert state is not None
    assert state["step"] == 1
    assert damaged == ["step_00000002.pt"]


def test_without_any_there_is_nothing_to_resume(tmp_path: Path) -> None:
    assert load_latest_checkpoint(tmp_path / "checkpoints") == (None, [])
