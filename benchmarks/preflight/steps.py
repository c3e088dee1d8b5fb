"""Training steps of many configurations: the peak estimated against the program's own.

As `runs` does, without what a run does beside its steps, so that many are affordable.
"""

import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.preflight.frames import run_config
from benchmarks.preflight.programs import each_in_a_process
from benchmarks.preflight.results import in_order, rows_kept, store
from benchmarks.preflight.runs import RUNS, frame_size, frames_of
from training.config import RunConfig
from training.events import EventLog
from training.memory.dry_step import several_steps
from training.memory.limits import forget_peak, peak_bytes
from training.memory.shortage import release_memory
from training.preflight import estimate_run, largest_batch
from training.preparation import Prepared, prepare
from training.schedule import build_optimizer

# The second step holds what the optimizer made in the first.
STEPS = 2
# A GPU loads kernels in the first steps of a size.
WARMING_STEPS = 3


def measure_steps(work: Path, results: Path, only: str = "") -> None:
    """Measure every configuration in a process of its own and store both numbers, see `runs`."""
    tasks, frames = {}, {}
    for name in (name for name in RUNS if only in name):
        size, changes = RUNS[name]
        width_px, height_px = frame_size(size)
        tasks[name] = run_config(frames_of(work, name), **changes)
        frames[name] = f"{width_px}x{height_px}"
    rows = rows_kept(results, "steps", RUNS, tasks)
    for name, measured in each_in_a_process(_measure, tasks):
        if measured is None:
            print(f"{name}: failed", flush=True)
            continue
        rows[name] = {"name": name, "frame": frames[name], **measured}
        print(json.dumps(rows[name]), flush=True)
        store(results, "steps", in_order(rows, RUNS))


def _measure(config: dict[str, Any]) -> dict[str, Any]:
    return measure_step(RunConfig.model_validate(config))


def measure_step(
    config: RunConfig, *, steps: int = STEPS, most_bytes: int | None = None
) -> dict[str, Any]:
    """Return what this process was estimated to hold in a training step and what it then held.

    Args:
        config: Of the run.
        steps: To make.
        most_bytes: No step is made that is estimated above this.
    """
    prepared = prepare_quietly(config)
    estimated = estimate_step(config, prepared)
    if most_bytes is not None and estimated["estimated_bytes"] > most_bytes:
        return estimated
    return {**estimated, **make_steps(config, prepared, steps=steps)}


def prepare_quietly(config: RunConfig) -> Prepared:
    """Prepare a run that has no directory."""
    with tempfile.TemporaryDirectory() as scratch:
        return prepare(config, EventLog(Path(scratch) / "events.jsonl"))


def estimate_step(config: RunConfig, prepared: Prepared) -> dict[str, Any]:
    """Return the estimate of a training step alone."""
    estimate = estimate_run(config, prepared)
    held = estimate.details["holdings"]
    # Steps alone load no frames and keep no best weights.
    beside = held["loading"] + held["best_weights"] if prepared.device.type == "cpu" else 0
    return {
        "estimated_bytes": estimate.phase_bytes["training_step"] - beside,
        "estimated_s": estimate.step_s,
    }


def make_steps(config: RunConfig, prepared: Prepared, *, steps: int) -> dict[str, Any]:
    """Return the peak of this process in some steps and the seconds of one.

    On a GPU that is the median of them after others that warm up, on a CPU the least.
    """
    on_gpu = prepared.device.type == "cuda"
    optimizer = build_optimizer(prepared.network, config.optimizer)
    release_memory()
    forget_peak()
    count = steps + (WARMING_STEPS if on_gpu else 0)
    shape = largest_batch(config, prepared)
    seconds = several_steps(config, prepared, shape, optimizer, count=count)
    if on_gpu:
        # The caching allocator's share of what is in use is told beside it.
        reserved = {"reserved_bytes": int(torch.cuda.max_memory_reserved(prepared.device))}
        step_s = statistics.median(seconds[WARMING_STEPS:])
    else:
        reserved, step_s = {}, min(seconds)
    return {"measured_s": step_s, "measured_bytes": peak_bytes(prepared.device), **reserved}
