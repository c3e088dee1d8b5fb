"""A run that memory is too short for takes less and goes on; it does not die in the middle."""

import gc
import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from data import Manifest, SplitSpec, assign_splits, import_folder
from data.synthetic import write_dataset
from tests.training_runs import finish, finish_short_of_memory
from training.events import read_events
from training.exit_status import EXIT_FAILED
from training.memory.limits import boot_id, kernel_memory_kills
from training.memory.shortage import release_memory
from training.run import execute
from training.run_directory import RunDirectory

pytestmark = pytest.mark.timeout(600)

CLASSES = ("scratch", "pit", "stain")
# Sixteen frames a step hold about 230 MB of activations, computed again about half of it, and one
# by one a sixteenth.
BATCH = 16
# What a run must give up that has so much beside what it holds as its first step begins.
LEFT_BYTES = {
    160_000_000: ["activation_checkpointing"],
    60_000_000: ["activation_checkpointing", "accumulation"],
}


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A version of 36 drawn frames with its manifest."""
    root = tmp_path_factory.mktemp("frames")
    write_dataset(root, count=36, good_rate=0.25, seed=3, width_px=192, height_px=160)
    found = import_folder(root, classes=CLASSES, unlabelled="reject", root=None)
    items = assign_splits(found.items, SplitSpec(group_pattern=r"(part_\d+)"))
    Manifest("segmentation", CLASSES, items).write(root / "manifest.jsonl")
    return root


def make_run(directory: Path, frames: Path, **changes: Any) -> RunDirectory:
    directory.mkdir()
    config = {
        "data": {
            "manifest": str(frames / "manifest.jsonl"),
            "root": str(frames),
            "workers": 0,
            "cache": {"max_bytes": 0},
        },
        "model": {
            "encoder": "mobilenet_v3_small",
            "encoder_depth": 3,
            "decoder_channels": [16, 8, 8],
        },
        "batch_size": BATCH,
        "budget": {"max_steps": 2},
        "checkpoint_every_s": 0,
        # A pass of its own at the end, which no rung makes smaller.
        "recalibration": None,
        "device": "cpu",
        **changes,
    }
    (directory / "config.json").write_text(json.dumps(config))
    return RunDirectory(directory)


def of_kind(run: RunDirectory, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_events(run.events) if event["kind"] == kind]


def memory_of(run: RunDirectory) -> dict[str, Any]:
    memory: dict[str, Any] = json.loads(run.report.read_text())["memory"]
    return memory


def test_a_backward_pass_that_failed_halfway_leaves_nothing_behind() -> None:
    class Kept(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, frames: torch.Tensor) -> torch.Tensor:
            # As large tensors are kept for the backward pass, but seen when it goes.
            ctx.kept = type("Activations", (), {})()
            watched.append(weakref.ref(ctx.kept))
            return frames.clone()

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    watched: list[weakref.ref[Any]] = []
    # Two branches are ready at once, and the second one's nodes wait when the first one fails.
    frames = torch.ones(4, requires_grad=True)
    with pytest.raises(RuntimeError, match="can't allocate"):
        (Kept.apply(frames).sum() + Kept.apply(frames).sum()).backward()
    gc.collect()
    assert any(kept() is not None for kept in watched)
    release_memory()
    assert [kept() for kept in watched] == [None, None]


@pytest.mark.slow
@pytest.mark.parametrize(("left_bytes", "given_up"), LEFT_BYTES.items())
def test_a_run_whose_memory_runs_out_steps_down_and_finishes(
    tmp_path: Path, frames: Path, left_bytes: int, given_up: list[str]
) -> None:
    run = make_run(tmp_path / "run", frames)
    assert finish_short_of_memory(run, left_bytes) == 0, (run.path / "log.txt").read_text()
    # Preflight did not know of the limit: what it saw was the machine's free memory.
    (preflight,) = of_kind(run, "preflight")
    assert preflight["fits"]
    assert preflight["rungs"] == []
    rungs = memory_of(run)["rungs"]
    assert [rung["rung"] for rung in rungs] == given_up
    assert all("memory ran out" in rung["because"] for rung in rungs)
    told = {event["rung"] for event in of_kind(run, "memory_step_down")}
    assert told == set(given_up)
    # Each time in a new program, in the same place.
    started = of_kind(run, "started")
    assert len(started) == len(given_up) + 1
    assert len({event["pid"] for event in started}) == 1


def test_a_limit_makes_preflight_step_down_until_it_fits(tmp_path: Path, frames: Path) -> None:
    # Each run has its own process, since what a process holds beforehand counts in what it needs.
    free = make_run(tmp_path / "free", frames, dry_run=True)
    assert finish(free) == 0
    (found,) = of_kind(free, "preflight")
    assert found["fits"]
    assert not free.bundle.exists()
    # Between what the run takes as it is and what its frames take one by one.
    limit_bytes = int(found["headroom"] * (found["estimate"]["peak_bytes"] - 150_000_000))

    bound = make_run(tmp_path / "bound", frames, dry_run=True, memory={"limit_bytes": limit_bytes})
    assert finish(bound) == 0
    (found,) = of_kind(bound, "preflight")
    assert found["fits"]
    assert found["limit"] == {"limit_bytes": limit_bytes, "source": "memory.limit_bytes"}
    taken = [rung["rung"] for rung in found["rungs"]]
    assert taken[0] == "activation_checkpointing"
    assert found["estimate"]["peak_bytes"] * found["headroom"] <= limit_bytes


def test_a_run_that_fits_nowhere_on_its_ladder_is_refused_with_the_numbers(
    tmp_path: Path, frames: Path
) -> None:
    run = make_run(tmp_path / "run", frames, memory={"limit_bytes": 400_000_000, "ladder": []})
    assert execute(run.path) == EXIT_FAILED
    (failed,) = of_kind(run, "failed")
    assert failed["code"] == "does_not_fit"
    assert "0.37 GiB are there (memory.limit_bytes)" in failed["detail"]
    assert "given up: nothing" in failed["detail"]
    assert "memory.ladder" in failed["hint"]
    assert of_kind(run, "progress") == []


def leave_trace(run: RunDirectory, step: int, kernel_kills: int | None) -> None:
    """What a program leaves that was killed in a step."""
    trace = {"step": step, "kernel_kills": kernel_kills, "boot": boot_id()}
    run.step_in_flight.write_text(json.dumps(trace))


@pytest.mark.slow
def test_a_program_that_dies_twice_in_the_same_step_is_taken_for_short_of_memory(
    tmp_path: Path, frames: Path
) -> None:
    run = make_run(tmp_path / "run", frames, batch_size=2)
    assert execute(run.path) == 0
    assert memory_of(run)["rungs"] == []
    # The same run again, as two programs that died in step 2 would leave it.
    for _ in range(2):
        leave_trace(run, 2, kernel_memory_kills())
        assert execute(run.path) == 0
    (rung,) = memory_of(run)["rungs"]
    assert rung["rung"] == "activation_checkpointing"
    assert "twice in a row: memory is assumed to have run out" in rung["because"]


@pytest.mark.slow
@pytest.mark.skipif(not kernel_memory_kills(), reason="the kernel has not killed for memory here")
def test_a_death_while_the_kernel_killed_for_memory_counts_at_once(
    tmp_path: Path, frames: Path
) -> None:
    run = make_run(tmp_path / "run", frames, batch_size=2)
    assert execute(run.path) == 0
    leave_trace(run, 2, 0)
    assert execute(run.path) == 0
    (rung,) = memory_of(run)["rungs"]
    assert "killed a process for memory" in rung["because"]
