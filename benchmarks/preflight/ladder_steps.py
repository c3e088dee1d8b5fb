"""Training steps on 2500x2000 frames with each step down: peak memory and seconds."""

import json
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.preflight.frames import drawn_frames, run_config
from benchmarks.preflight.programs import each_in_a_process
from benchmarks.preflight.results import load, store
from benchmarks.preflight.steps import (
    estimate_step,
    make_steps,
    measure_step,
    prepare_quietly,
)
from training.config import RunConfig
from training.memory.fitting import HEADROOM
from training.memory.limits import memory_limit
from training.memory.shortage import release_memory

FRAME = (2500, 2000)
# Beyond this share of what is free a cell is estimated and not measured on a CPU, so that it harms
# nobody else there.
SHARE_OF_CPU = 0.7
STEPS_ON_GPU = 5

CHECKPOINTING: dict[str, Any] = {"memory": {"activation_checkpointing": True, "ladder": []}}
BFLOAT16: dict[str, Any] = {"precision": "bfloat16"}
ACCUMULATED: dict[str, Any] = {"batch_size": 1, "accumulation_steps": 2}
CROPS: dict[str, Any] = {"resolution": {"mode": "crop", "height_px": 1024, "width_px": 1280}}
SAMPLED: dict[str, Any] = {"norm": {"kind": "cbn"}}
# More positions than any map here has.
ALL_SLOPES: dict[str, Any] = {"norm": {"kind": "cbn", "slope_positions": 100_000_000}}
# The quickest first: on a CPU a step takes minutes.
CELLS: dict[str, dict[str, Any]] = {
    "batch 1, crops": {"batch_size": 1, **CROPS},
    "batch 1, bfloat16": {"batch_size": 1, **BFLOAT16},
    "batch 1": {"batch_size": 1},
    "batch 1, checkpointing, bfloat16": {"batch_size": 1, **CHECKPOINTING, **BFLOAT16},
    "batch 2, bfloat16": {**BFLOAT16},
    "batch 1, checkpointing": {"batch_size": 1, **CHECKPOINTING},
    "batch 2, accumulation": {**ACCUMULATED},
    "batch 2": {},
    "batch 2, checkpointing, accumulation": {**CHECKPOINTING, **ACCUMULATED},
    "batch 2, checkpointing": {**CHECKPOINTING},
    "batch 1, cbn, sampled slopes": {"batch_size": 1, **SAMPLED},
    "batch 1, cbn, all slopes": {"batch_size": 1, **ALL_SLOPES},
    "batch 2, cbn, sampled slopes": SAMPLED,
    "batch 2, cbn, all slopes": ALL_SLOPES,
}
_RUNGS: dict[str, dict[str, Any]] = {
    "": {},
    ", checkpointing": CHECKPOINTING,
    ", crops": CROPS,
    ", bfloat16": BFLOAT16,
    ", checkpointing, bfloat16": {**CHECKPOINTING, **BFLOAT16},
    ", cbn, all slopes": ALL_SLOPES,
    ", cbn, sampled slopes": SAMPLED,
    ", cbn, sampled slopes, bfloat16": {**SAMPLED, **BFLOAT16},
}
GPU_CELLS: dict[str, dict[str, Any]] = {
    **{f"batch 1{name}": {"batch_size": 1, **rung} for name, rung in _RUNGS.items()},
    **{f"batch 2{name}": rung for name, rung in _RUNGS.items()},
    "batch 2, accumulation": ACCUMULATED,
    "batch 2, accumulation, bfloat16": {**ACCUMULATED, **BFLOAT16},
    "batch 2, checkpointing, accumulation": {**CHECKPOINTING, **ACCUMULATED},
}


def measure_ladder(work: Path, results: Path, *, estimate_only: bool) -> None:
    """Measure every cell of this machine's ladder."""
    drawn_frames(work, *FRAME)
    if torch.cuda.is_available():
        _measure_on_gpu(work, results, estimate_only=estimate_only)
    else:
        _measure_on_cpu(work, results, estimate_only=estimate_only)


def _measure_on_cpu(work: Path, results: Path, *, estimate_only: bool) -> None:
    """Measure every cell in a process of its own, one after the other.

    A cell that has been measured is estimated again and keeps its measurement.
    """
    before = {row["name"]: row for row in load(results).get("ladder", {}).get("rows", [])}
    kept = {
        name: {key: value for key, value in before.get(name, {}).items() if "measured" in key}
        for name in CELLS
    }
    tasks = {name: (name, work, estimate_only or bool(kept[name])) for name in CELLS}
    rows = []
    for name, found in each_in_a_process(_measure_cell, tasks):
        if found is None:
            print(f"{name}: failed", flush=True)
            continue
        rows.append({"name": name, **kept[name], **found})
        print(json.dumps(rows[-1]), flush=True)
        store(results, "ladder", rows)


def _measure_cell(task: tuple[str, Path, bool]) -> dict[str, Any]:
    """Return the estimate and, where memory allows it, the measured peak of one step."""
    name, work, estimate_only = task
    # The optimizer's state, which a second step would hold as well, is small beside such frames.
    most_bytes = 0 if estimate_only else int(SHARE_OF_CPU * psutil.virtual_memory().available)
    return measure_step(_config(CELLS[name], work), steps=1, most_bytes=most_bytes)


def _measure_on_gpu(work: Path, results: Path, *, estimate_only: bool) -> None:
    """Estimate all cells, several at once, then make the steps of one after the other.

    The steps are made in this process: what a GPU has allocated is counted anew for each.
    """
    tasks = {name: (name, work) for name in GPU_CELLS}
    estimated = dict(each_in_a_process(_estimate_on_gpu, tasks))
    rows = []
    for name, estimate in estimated.items():
        if estimate is None:
            print(f"{name}: failed", flush=True)
            continue
        limit_bytes = memory_limit(torch.device("cuda"), None).limit_bytes
        fits = HEADROOM * estimate["estimated_bytes"] <= limit_bytes
        made = _steps_on_gpu(name, work) if fits and not estimate_only else {}
        rows.append({"name": name, **estimate, **made})
        print(json.dumps(rows[-1]), flush=True)
        store(results, "ladder", rows)


def _estimate_on_gpu(task: tuple[str, Path]) -> dict[str, Any]:
    name, work = task
    config = _config(GPU_CELLS[name], work)
    return estimate_step(config, prepare_quietly(config))


def _steps_on_gpu(name: str, work: Path) -> dict[str, Any]:
    """Return what steps of a cell took; nothing where memory ran out, which is said."""
    config = _config(GPU_CELLS[name], work)
    try:
        return make_steps(config, prepare_quietly(config), steps=STEPS_ON_GPU)
    except torch.OutOfMemoryError as error:
        print(f"{name}: {error}", flush=True)
        return {}
    finally:
        release_memory()


def _config(cell: dict[str, Any], work: Path) -> RunConfig:
    root = drawn_frames(work, *FRAME)
    # What a GPU would choose by itself is a step down here.
    common = {"norm": {"kind": "bn"}, "precision": "float32"}
    return RunConfig.model_validate(run_config(root, **{**common, **cell}))
