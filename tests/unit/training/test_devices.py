"""A run on several devices: the curve of one that accumulates, and one death ends them all."""

import json
import resource
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from tests.training_runs import data_bytes, finish, kinds, make_run, start, wait_for_step, weights
from training.events import read_events
from training.exit_status import EXIT_FAILED, EXIT_OK, EXIT_RANK_DIED
from training.run import execute
from training.run_directory import RunDirectory

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def curve(run: RunDirectory, name: str) -> dict[int, float]:
    """The values by step: a run that is killed right after a look takes it again."""
    return {
        event["step"]: event["values"][name]
        for event in read_events(run.events)
        if event["kind"] == "metrics" and name in event["values"]
    }


def other_ranks(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The processes of the other ranks: children that run Python and not the resource tracker."""
    return [
        child
        for child in psutil.Process(process.pid).children()
        if "spawn_main" in " ".join(child.cmdline())
    ]


def test_two_processes_give_the_curve_of_one_that_accumulates_and_survive_any_death(
    tmp_path: Path, frames: Path
) -> None:
    small: dict[str, Any] = {"batch_size": 1, "norm": {"kind": "bn"}, "budget": {"max_epochs": 2}}
    alone = make_run(tmp_path / "alone", frames, accumulation_steps=2, **small)
    assert finish(alone) == 0

    shared = make_run(tmp_path / "shared", frames, devices=2, **small)
    process = start(shared)
    wait_for_step(shared, 3)
    (other,) = other_ranks(process)
    other.send_signal(signal.SIGKILL)
    assert process.wait(timeout=60) == EXIT_RANK_DIED
    last = read_events(shared.events)[-1]
    assert (last["kind"], last["code"]) == ("warning", "rank_died")

    process = start(shared)
    wait_for_step(shared, 8)
    (other,) = other_ranks(process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 30
    while other.is_running() and other.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "a rank outlived its run"
        time.sleep(0.05)

    assert finish(shared) == 0
    assert kinds(shared).count("finished") == 1
    # The order of float32 sums differs, and each step makes more of the difference.
    for name in ("training_loss", "calibration_dice"):
        expected = curve(alone, name)
        assert len(expected) == 2
        assert curve(shared, name) == pytest.approx(expected, rel=1e-5), name
    for name, tensor in weights(alone).items():
        torch.testing.assert_close(weights(shared)[name], tensor, rtol=1e-4, atol=1e-5)
    training = json.loads(shared.report.read_text())["training"]
    assert (training["devices"], training["images_per_step"], training["steps"]) == (2, 2, 14)


def finish_with_a_short_rank(run: RunDirectory) -> int:
    """Run; once it trains, the kernel leaves the second rank too little for a step."""
    process = start(run)
    wait_for_step(run, 2)
    (other,) = other_ranks(process)
    held = []
    # The first rank looks at calibration frames after each step, and this one waits empty-handed.
    for _ in range(200):
        held.append(data_bytes(other.pid))
        time.sleep(0.01)
    # A batch of eight frames holds some 100 MB of activations; what is done between steps, a few.
    limit = min(held) + 45_000_000
    resource.prlimit(other.pid, resource.RLIMIT_DATA, (limit, limit))
    return process.wait(timeout=300)


@pytest.mark.parametrize(
    ("norm", "status", "because"),
    [
        ({"kind": "bn"}, EXIT_OK, "memory ran out (the device of another rank ran out of memory)"),
        ({"kind": "cbn", "ranks": "pooled"}, EXIT_RANK_DIED, "memory ran out on rank 1 ("),
    ],
)
def test_a_rank_that_runs_out_of_memory_makes_the_run_step_down(
    tmp_path: Path,
    frames: Path,
    monkeypatch: pytest.MonkeyPatch,
    norm: dict[str, Any],
    status: int,
    because: str,
) -> None:
    # Blocks that are given back at once: between steps a program holds what it always does.
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "131072")
    eight: dict[str, Any] = {"devices": 2, "batch_size": 8, "norm": norm}
    run = make_run(tmp_path / "run", frames, **eight, budget={"max_steps": 20, "max_epochs": 100})
    assert finish_with_a_short_rank(run) == status
    if status == EXIT_RANK_DIED:
        assert finish(run) == EXIT_OK
    (rung,) = json.loads(run.report.read_text())["memory"]["rungs"]
    assert rung["rung"] == "activation_checkpointing"
    assert rung["because"].startswith(because)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"device": "cuda:0", "devices": 2}, "device_named"),
        ({"devices": 64, "norm": {"kind": "cbn", "ranks": "pooled"}}, "too_few_frames"),
    ],
)
def test_devices_that_can_not_share_a_run_are_refused_with_the_remedy(
    tmp_path: Path, frames: Path, changes: dict[str, Any], code: str
) -> None:
    run = make_run(tmp_path / "run", frames, **changes)
    assert execute(run.path) == EXIT_FAILED
    failed = read_events(run.events)[-1]
    assert (failed["kind"], failed["code"]) == ("failed", code)
    assert failed["hint"]
