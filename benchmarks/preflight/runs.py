"""Whole runs of two steps: the peak estimated before the first one against the program's own."""

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks.preflight.frames import crowded_frames, drawn_frames, run_config
from benchmarks.preflight.programs import at_once, threads_each
from benchmarks.preflight.results import in_order, rows_kept, store

UNET18: dict[str, Any] = {"architecture": "unet", "encoder": "resnet18"}
CHECKPOINTED: dict[str, Any] = {"activation_checkpointing": True, "ladder": []}


def _unet(encoder: str) -> dict[str, Any]:
    return {"architecture": "unet", "encoder": encoder}


def _fpn(encoder: str) -> dict[str, Any]:
    return {"architecture": "fpn", "encoder": encoder}


def _detector(architecture: str, encoder: str, **detection: int) -> dict[str, Any]:
    return {"architecture": architecture, "encoder": encoder, "detection": detection}


CROWDED = ", crowded frames"
# Frame size and what differs from a job's defaults.
RUNS: dict[str, tuple[tuple[int, int], dict[str, Any]]] = {
    "unet resnet18, auto, batch 2": ((512, 384), {"model": UNET18}),
    "unet resnet18, cbn, batch 1": (
        (512, 384),
        {"model": UNET18, "norm": {"kind": "cbn"}, "batch_size": 1},
    ),
    "unet resnet18, bn, batch 2, checkpointing": (
        (512, 384),
        {"model": UNET18, "memory": CHECKPOINTED},
    ),
    "unet resnet18, cbn, batch 1, checkpointing": (
        (512, 384),
        {"model": UNET18, "norm": {"kind": "cbn"}, "batch_size": 1, "memory": CHECKPOINTED},
    ),
    "unet resnet18, bn, batch 2, bfloat16": (
        (512, 384),
        {"model": UNET18, "precision": "bfloat16"},
    ),
    "unet resnet18, bn, 2 x batch 1 accumulated": (
        (512, 384),
        {"model": UNET18, "batch_size": 1, "accumulation_steps": 2},
    ),
    "unet resnet18, bn, batch 4, windows of 256 px": (
        (512, 384),
        {
            "model": UNET18,
            "batch_size": 4,
            "resolution": {"mode": "crop", "height_px": 256, "width_px": 256},
        },
    ),
    "unet resnet34, gn, batch 1": (
        (512, 384),
        {"model": _unet("resnet34"), "norm": {"kind": "gn"}, "batch_size": 1},
    ),
    "unet mobilenet_v2, brn, batch 2": (
        (512, 384),
        {"model": _unet("mobilenet_v2"), "norm": {"kind": "brn"}},
    ),
    "unet efficientnet_b0, bn, batch 1, moving average": (
        (512, 384),
        {"model": _unet("efficientnet_b0"), "norm": {"kind": "bn"}, "batch_size": 1, "ema": {}},
    ),
    "fpn resnet50, frozen, batch 1": (
        (512, 384),
        {"model": _fpn("resnet50"), "norm": {"kind": "frozen"}, "batch_size": 1},
    ),
    "fpn mobilenet_v3_small, bn, batch 2": (
        (512, 384),
        {"model": _fpn("mobilenet_v3_small")},
    ),
    "unet mobilenet_v3_small, cbn exponential, batch 1": (
        (512, 384),
        {
            "model": _unet("mobilenet_v3_small"),
            "norm": {"kind": "cbn", "history": "exponential"},
            "batch_size": 1,
        },
    ),
    "unet resnet18, bn, batch 1, larger frames": (
        (896, 768),
        {"model": UNET18, "norm": {"kind": "bn"}, "batch_size": 1},
    ),
    "unet resnet18, bn, batch 2, larger frames, checkpointing": (
        (896, 768),
        {"model": UNET18, "memory": CHECKPOINTED},
    ),
    "fasterrcnn resnet18, bn, batch 2": (
        (512, 384),
        {"model": _detector("fasterrcnn", "resnet18")},
    ),
    "fasterrcnn mobilenet_v3_small, 64 channels, cbn, batch 1, larger frames": (
        (896, 768),
        {
            "model": _detector("fasterrcnn", "mobilenet_v3_small", pyramid_channels=64),
            "norm": {"kind": "cbn"},
            "batch_size": 1,
        },
    ),
    "retinanet resnet18, bn, batch 1, checkpointing": (
        (512, 384),
        {
            "model": _detector("retinanet", "resnet18"),
            "norm": {"kind": "bn"},
            "batch_size": 1,
            "memory": CHECKPOINTED,
        },
    ),
    "retinanet mobilenet_v3_small, 64 channels, bn, batch 2": (
        (512, 384),
        {"model": _detector("retinanet", "mobilenet_v3_small", pyramid_channels=64)},
    ),
    "retinanet mobilenet_v3_small, 64 channels, bn, batch 1" + CROWDED: (
        (512, 384),
        {
            "model": _detector("retinanet", "mobilenet_v3_small", pyramid_channels=64),
            "norm": {"kind": "bn"},
            "batch_size": 1,
        },
    ),
    "fcos resnet18, 128 channels, cbn, batch 1, larger frames": (
        (896, 768),
        {
            "model": _detector("fcos", "resnet18", pyramid_channels=128),
            "norm": {"kind": "cbn"},
            "batch_size": 1,
        },
    ),
}


# A GPU is asked about frames as they come from a camera, beside which weights are small.
_GPU_FRAMES = {(512, 384): (1280, 1024), (896, 768): (2500, 2000)}


def frame_size(size: tuple[int, int]) -> tuple[int, int]:
    """Return the width and height that a configuration of `RUNS` has on this machine."""
    return _GPU_FRAMES[size] if torch.cuda.is_available() else size


def frames_of(work: Path, name: str) -> Path:
    """Return the folder of the frames that a configuration of `RUNS` is measured on."""
    draw = crowded_frames if name.endswith(CROWDED) else drawn_frames
    return draw(work, *frame_size(RUNS[name][0]))


def measure_runs(work: Path, results: Path, only: str = "") -> None:
    """Run every configuration in a program of its own and store both numbers.

    A run that fails is reported and left out of the table.

    Args:
        work: For frames and runs.
        results: The results file.
        only: What the names of the configurations to run hold; others keep their rows.
    """
    names = [name for name in RUNS if only in name]
    sizes = [frame_size(RUNS[name][0]) for name in names]
    roots = [frames_of(work, name) for name in names]
    rows = rows_kept(results, "runs", RUNS, names)
    with ThreadPoolExecutor(at_once()) as pool:
        memories = pool.map(
            lambda number, root, run: _memory_of_run(
                work / f"run-{number}", run_config(root, **RUNS[run][1])
            ),
            range(len(roots)),
            roots,
            names,
        )
        for name, (width_px, height_px), memory in zip(names, sizes, memories, strict=True):
            if memory is None:
                print(f"{name}: failed", flush=True)
                continue
            rows[name] = {
                "name": name,
                "frame": f"{width_px}x{height_px}",
                "estimated_bytes": memory["estimate"]["peak_bytes"],
                "measured_bytes": memory["measured_peak_bytes"],
                "phase_bytes": memory["estimate"]["phase_bytes"],
            }
            print(json.dumps(rows[name]), flush=True)
            store(results, "runs", in_order(rows, RUNS))


def _memory_of_run(run_dir: Path, config: dict[str, Any]) -> dict[str, Any] | None:
    shutil.rmtree(run_dir, ignore_errors=True)
    run_dir.mkdir(parents=True)
    (run_dir / "config.json").write_text(json.dumps(config))
    threads = {"OMP_NUM_THREADS": str(threads_each())} if at_once() > 1 else {}
    with (run_dir / "log.txt").open("wb") as log:
        command = [sys.executable, "-m", "training", str(run_dir)]
        status = subprocess.run(  # noqa: S603 - our own program.
            command, check=False, stdout=log, stderr=log, env={**os.environ, **threads}
        ).returncode
    if status != 0:
        return None
    report: dict[str, Any] = json.loads((run_dir / "report.json").read_text())
    memory: dict[str, Any] = report["memory"]
    for name in ("checkpoints", "rewind_points"):
        shutil.rmtree(run_dir / name, ignore_errors=True)
    return memory
