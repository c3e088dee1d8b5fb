"""Training on a GPU: every normalization learns, and a run goes on where it was killed."""

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data import Manifest, decode_image
from models import FrozenModel, load_bundle
from tests.training_runs import kinds, make_run, start, wait_for_step, weights
from training.events import read_events
from training.run import execute

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device"),
]


@pytest.mark.parametrize(
    "norm",
    [
        {"kind": "cbn", "window_size": 4, "burn_in_steps": 0},
        {"kind": "cbn", "window_size": 4, "burn_in_steps": 0, "gradient": "paper"},
        {"kind": "brn"},
        {"kind": "bn"},
        {"kind": "gn"},
        {"kind": "frozen"},
    ],
    ids=["cbn", "cbn-paper", "brn", "bn", "gn", "frozen"],
)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_run_on_a_gpu_learns_and_its_model_serves_on_a_processor(
    tmp_path: Path, frames: Path, norm: dict[str, Any], precision: str
) -> None:
    run = make_run(
        tmp_path / "run",
        frames,
        norm=norm,
        device="cuda",
        precision=precision,
        budget={"max_steps": 2},
    )
    assert execute(run.path) == 0, (run.path / "events.jsonl").read_text()
    assert "finished" in kinds(run)
    assert all(torch.isfinite(tensor).all() for tensor in weights(run).values())
    # Whoever has no GPU gets the same verdict of the same weights.
    item = Manifest.read(frames / "manifest.jsonl").items[0]
    pixels = decode_image((frames / item.file).read_bytes(), name=item.name).pixels
    there = FrozenModel(load_bundle(run.bundle), "cuda").probabilities(pixels)
    here = FrozenModel(load_bundle(run.bundle), "cpu").probabilities(pixels)
    assert np.abs(there - here).max() < 1e-4


def test_a_run_killed_on_a_gpu_goes_on_from_its_last_step(tmp_path: Path, frames: Path) -> None:
    wishes: dict[str, Any] = {
        "device": "cuda",
        "budget": {"max_steps": 100, "max_epochs": 100},
        "ema": {"decay": 0.9},
    }
    run = make_run(tmp_path / "run", frames, **wishes)
    process = start(run)
    wait_for_step(run, 2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert "finished" not in kinds(run)
    assert execute(run.path) == 0
    resumed = [e["resumed_from_step"] for e in read_events(run.events) if e["kind"] == "started"]
    assert resumed[0] is None
    assert 2 <= resumed[1] < 100
    assert "finished" in kinds(run)
