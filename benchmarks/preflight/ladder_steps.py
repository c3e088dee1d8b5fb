"""One training step on 2500x2000 frames with each step down: peak memory and seconds."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.preflight.frames import drawn_frames, run_config
from benchmarks.preflight.results import load, store
from benchmarks.preflight.steps import measure_step
from training.config import RunConfig

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


def measure_ladder(work: Path, results: Path, *, estimate_only: bool) -> None:
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
        command += ["--estimate-only"] if measured or estimate_only else []
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603 - our own program.
        rows.append({"name": name, **measured, **json.loads(told.splitlines()[-1])})
        print(json.dumps(rows[-1]), flush=True)
        store(results, "ladder", rows)


def measure_cell(name: str, work: Path, *, estimate_only: bool) -> None:
    """Print the estimate and, where memory allows it, the measured peak of one step, as JSON."""
    root = drawn_frames(work, *FRAME)
    norm = {"norm": {"kind": "bn"}}
    config = RunConfig.model_validate(run_config(root, **norm, **CELLS[name]))
    # The optimizer's state, which a second step would hold as well, is small beside such frames.
    result = measure_step(config, steps=1, most_bytes=0 if estimate_only else MOST_BYTES)
    print(json.dumps(result))
