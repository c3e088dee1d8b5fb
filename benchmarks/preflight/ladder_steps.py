"""One training step on 2500x2000 frames with each step down: peak memory and seconds."""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.preflight.frames import drawn_frames, run_config
from benchmarks.preflight.results import load, store
from training.config import RunConfig
from training.events import EventLog
from training.memory.dry_step import one_step
from training.memory.limits import forget_peak, peak_bytes
from training.memory.shortage import release_memory
from training.preflight import estimate_run, largest_batch
from training.preparation import prepare
from training.schedule import build_optimizer

FRAME = (2500, 2000)
# Beyond this a cell is estimated and not measured, so that it harms nobody else on the machine.
MOST_BYTES = 11 * 1024**3

CHECKPOINTING: dict[str, Any] = {"memory": {"activation_checkpointing": True, "ladder": []}}
BFLOAT16: dict[str, Any] = {"precision": "bfloat16"}
ACCUMULATED: dict[str, Any] = {"batch_size": 1, "accumulation_steps": 2}
CROPS: dict[str, Any] = {"resolution": {"mode": "crop", "height_px": 1024, "width_px": 1280}}
CELLS: dict[str, dict[str, Any]] = {
    "batch 1": {"batch_size": 1},
    "batch 1, checkpointing": {"batch_size": 1, **CHECKPOINTING},
    "batch 2, accumulation": {**ACCUMULATED},
    "batch 2, checkpointing": {**CHECKPOINTING},
    "batch 2, checkpointing, accumulation": {**CHECKPOINTING, **ACCUMULATED},
    "batch 2": {},
    "batch 1, bfloat16": {"batch_size": 1, **BFLOAT16},
    "batch 1, checkpointing, bfloat16": {"batch_size": 1, **CHECKPOINTING, **BFLOAT16},
    "batch 2, bfloat16": {**BFLOAT16},
    "batch 1, crops": {"batch_size": 1, **CROPS},
}


def measure_ladder(work: Path, results: Path) -> None:
    """Measure every cell in a program of its own, one after the other.

    A cell that has been measured is estimated again and keeps its measurement.
    """
    drawn_frames(work, *FRAME)
    before = {row["name"]: row for row in load(results).get("ladder", {}).get("rows", [])}
    rows = []
    for name in CELLS:
        command = [sys.executable, "-m", "benchmarks.preflight", "cell", "--cell", name]
        command += ["--work", str(work)]
        measured = {key: value for key, value in before.get(name, {}).items() if "measured" in key}
        command += ["--estimate-only"] if measured else []
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603 - our own program.
        rows.append({"name": name, **measured, **json.loads(told.splitlines()[-1])})
        print(json.dumps(rows[-1]), flush=True)
        store(results, "ladder", rows)


def measure_cell(name: str, work: Path, *, estimate_only: bool) -> None:
    """Print the estimate and, where memory allows it, the measured peak of one step, as JSON."""
    root = drawn_frames(work, *FRAME)
    norm = {"norm": {"kind": "bn"}}
    config = RunConfig.model_validate(run_config(root, **norm, **CELLS[name]))
    with tempfile.TemporaryDirectory() as scratch:
        prepared = prepare(config, EventLog(Path(scratch) / "events.jsonl"))
    estimate = estimate_run(config, prepared)
    held = estimate.details["holdings"]
    # A step alone loads no frames and keeps no best weights.
    beside = held["loading"] + held["best_weights"] if prepared.device.type == "cpu" else 0
    result: dict[str, Any] = {
        "estimated_bytes": estimate.phase_bytes["training_step"] - beside,
        "estimated_s": estimate.step_s,
    }
    if result["estimated_bytes"] <= MOST_BYTES and not estimate_only:
        optimizer = build_optimizer(prepared.network, config.optimizer)
        release_memory()
        forget_peak()
        begin_s = time.perf_counter()
        one_step(config, prepared, largest_batch(config, prepared), optimizer)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        result["measured_s"] = time.perf_counter() - begin_s
        result["measured_bytes"] = peak_bytes(prepared.device)
    print(json.dumps(result))
