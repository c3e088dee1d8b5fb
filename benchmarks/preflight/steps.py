"""Training steps of many configurations: the peak estimated against the program's own.

As `runs` does, without what a run does beside its steps, so that many are affordable.
"""

import json
import multiprocessing
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.preflight.frames import drawn_frames, run_config
from benchmarks.preflight.results import store
from benchmarks.preflight.runs import RUNS
from training.config import RunConfig
from training.events import EventLog
from training.memory.dry_step import one_step
from training.memory.limits import forget_peak, peak_bytes
from training.memory.shortage import release_memory
from training.preflight import estimate_run, largest_batch
from training.preparation import prepare
from training.schedule import build_optimizer

# The second step holds what the optimizer made in the first.
STEPS = 2


def measure_steps(work: Path, results: Path) -> None:
    """Measure every configuration in a process of its own and store both numbers."""
    # Libraries are loaded once; each process begins with nothing else.
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload([__name__, "segmentation_models_pytorch", "torch._dynamo"])
    rows = []
    for name, ((width_px, height_px), changes) in RUNS.items():
        root = drawn_frames(work, width_px, height_px)
        answers = processes.SimpleQueue()
        process = processes.Process(target=_answer, args=(run_config(root, **changes), answers))
        process.start()
        process.join()
        if process.exitcode != 0:
            print(f"{name}: failed", flush=True)
            continue
        rows.append({"name": name, "frame": f"{width_px}x{height_px}", **answers.get()})
        print(json.dumps(rows[-1]), flush=True)
        store(results, "steps", rows)


def _answer(config: dict[str, Any], answers: Any) -> None:
    answers.put(measure_step(RunConfig.model_validate(config)))


def measure_step(
    config: RunConfig, *, steps: int = STEPS, most_bytes: int | None = None
) -> dict[str, Any]:
    """Return what this process was estimated to hold in a training step and what it then held.

    Args:
        config: Of the run.
        steps: To make.
        most_bytes: No step is made that is estimated above this.
    """
    with tempfile.TemporaryDirectory() as scratch:
        prepared = prepare(config, EventLog(Path(scratch) / "events.jsonl"))
    estimate = estimate_run(config, prepared)
    held = estimate.details["holdings"]
    # Steps alone load no frames and keep no best weights.
    beside = held["loading"] + held["best_weights"] if prepared.device.type == "cpu" else 0
    estimated_bytes = estimate.phase_bytes["training_step"] - beside
    result: dict[str, Any] = {"estimated_bytes": estimated_bytes, "estimated_s": estimate.step_s}
    if most_bytes is not None and estimated_bytes > most_bytes:
        return result
    optimizer = build_optimizer(prepared.network, config.optimizer)
    release_memory()
    forget_peak()
    shape = largest_batch(config, prepared)
    result["measured_s"] = min(one_step(config, prepared, shape, optimizer) for _ in range(steps))
    result["measured_bytes"] = peak_bytes(prepared.device)
    return result
