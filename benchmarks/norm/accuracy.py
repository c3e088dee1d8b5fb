"""Trains small segmentation networks on real defect images under each normalization.

Every run's outcome is written at once, and a run that is in the results file is never repeated:
an interrupted benchmark goes on, and several invocations add up. `accuracy-report` writes the
tables. Needs torch, torchvision and timm alone.
"""

import argparse
import multiprocessing
import os
import sys
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch

from benchmarks.norm.frames import MissingDatasetError, list_frames
from benchmarks.norm.network import build_network
from benchmarks.norm.protocol import (
    BATCHES,
    CHOOSING_SEEDS,
    DEFAULT_METHODS,
    DEFAULT_SEEDS,
    METHODS,
    SETS,
    Cell,
    Run,
    conversion_options,
    open_runs,
    plan_cells,
)
from benchmarks.norm.results import ResultsFile, StaleResultsError, describe_machine
from benchmarks.norm.single_run import perform
from norm import OptionError, convert_batchnorm


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("--datasets", type=Path, default=Path("../shared/datasets"))
    parser.add_argument("--results", type=Path, default=Path("docs/benchmarks/norm-accuracy.json"))
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument(
        "--methods", nargs="+", choices=list(METHODS), default=list(DEFAULT_METHODS)
    )
    parser.add_argument("--batches", nargs="+", type=int, choices=BATCHES, default=list(BATCHES))
    parser.add_argument("--accumulate", nargs="+", choices=("no", "yes"), default=["no", "yes"])
    parser.add_argument("--seeds", type=int, default=DEFAULT_SEEDS, help="seeds of each cell")
    parser.add_argument(
        "--choosing-seeds",
        type=int,
        choices=(1, CHOOSING_SEEDS),
        default=CHOOSING_SEEDS,
        help="seeds to choose the learning rate by; 1 is for frames that take long",
    )
    parser.add_argument("--workers", type=int, default=1, help="runs at a time, a thread each")
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), help="cuda where there is one, unless told"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run what is missing and return the exit status: 1 if a run failed, 2 for bad input."""
    if arguments.seeds < 1 or arguments.workers < 1:
        print("--seeds and --workers must be at least 1", file=sys.stderr)
        return 2
    # Sleeping threads leave the other workers their cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    machine = describe_machine(device)
    results = ResultsFile(arguments.results)
    left_out = unavailable_methods(arguments.methods)
    for name, reason in left_out.items():
        print(f"left out: {name}: {reason}")
    methods = [name for name in arguments.methods if name not in left_out]
    accumulate = [choice == "yes" for choice in arguments.accumulate]
    cells = plan_cells(arguments.sets, methods, arguments.batches, accumulate)
    try:
        for name in arguments.sets:
            list_frames(SETS[name].source, arguments.datasets)
        done = {run: entry["val_ap"] for run, entry in results.runs().items()}
    except (MissingDatasetError, StaleResultsError) as error:
        print(error, file=sys.stderr)
        return 2
    results.open(machine, _command(arguments), left_out)
    failed = _run_all(cells, done, results, machine, arguments, device)
    for run_failed, reason in failed.items():
        print(f"failed: {run_failed.key}: {reason}", file=sys.stderr)
    return 1 if failed else 0


def _command(arguments: argparse.Namespace) -> str:
    return (
        "python -m benchmarks.norm accuracy"
        f" --sets {' '.join(arguments.sets)} --methods {' '.join(arguments.methods)}"
        f" --batches {' '.join(map(str, arguments.batches))}"
        f" --accumulate {' '.join(arguments.accumulate)}"
        f" --seeds {arguments.seeds} --choosing-seeds {arguments.choosing_seeds}"
        f" --workers {arguments.workers}"
    )


def unavailable_methods(names: list[str]) -> dict[str, str]:
    """Return the methods whose options this version of `norm` does not take, and why."""
    reasons = {}
    for name in names:
        network = build_network(3, patches=True, seed=0)
        options = conversion_options(METHODS[name], total_steps=1)
        try:
            convert_batchnorm(
                network, torch.zeros(1, 3, 64, 64), kind=METHODS[name].kind, **options
            )
        except OptionError as error:
            reasons[name] = str(error)
    return reasons


def _run_all(
    cells: list[Cell],
    done: dict[Run, float],
    results: ResultsFile,
    machine: dict[str, Any],
    arguments: argparse.Namespace,
    device: str,
) -> dict[Run, str]:
    """Keep every worker busy until nothing can start; return the runs that raised, and why.

    Only this process writes the file.
    """
    failed: dict[Run, str] = {}
    # A forked torch process can hang in its thread pool.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(arguments.workers, context, initializer=_start_worker)
    with pool:
        waiting: dict[Future[dict[str, Any]], Run] = {}
        while True:
            taken = {*waiting.values(), *failed}
            by = arguments.choosing_seeds
            for job in open_runs(cells, arguments.seeds, done, taken, to_choose_by=by):
                if len(waiting) == arguments.workers:
                    break
                waiting[pool.submit(perform, job, arguments.datasets, device)] = job
            if not waiting:
                return failed
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                job = waiting.pop(future)
                error = future.exception()
                if error is not None:
                    failed[job] = f"{type(error).__name__}: {error}"
                    print(f"{job.key}: {failed[job]}", file=sys.stderr, flush=True)
                    continue
                outcome = future.result()
                results.add(job, outcome, machine)
                done[job] = outcome["val_ap"]
                print(_line(job, outcome), flush=True)


def _start_worker() -> None:
    torch.set_num_threads(1)


def _line(job: Run, outcome: dict[str, Any]) -> str:
    scores = f"val {outcome['val_ap']:.4f} test {outcome['test_ap']:.4f}"
    if outcome["test_ap_recalibrated"] is not None:
        scores += f" recalibrated {outcome['test_ap_recalibrated']:.4f}"
    flag = " DIVERGED" if outcome["diverged"] else ""
    return f"{job.key}: {scores}{flag} ({outcome['seconds']:.1f} s)"
