"""``python -m benchmarks.quality``: train as a user would on real sets, and write the table.

Each run is a run directory and ``python -m training`` over it.  Its outcome is stored when it has
finished, and a run that is stored is never repeated: the command can be stopped at any time and
goes on where it was, within a run from its last checkpoint.
"""

import argparse
import json
import os
import platform
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.norm.processor import processor_name
from benchmarks.quality.outcome import failure_of, outcome_of
from benchmarks.quality.overlays import draw_overlays
from benchmarks.quality.protocol import (
    NORMS,
    PROFILES,
    SEEDS,
    SETS,
    Profile,
    Run,
    plan_cells,
    plan_runs,
)
from benchmarks.quality.report import estimate_text, report
from benchmarks.quality.results import QualityResults
from benchmarks.quality.trainings import Share, Trainings
from benchmarks.quality.versions import FrozenVersion, MissingDatasetError, freeze
from benchmarks.runs_file import StaleResultsError

WORK = Path("benchmark-results/quality")
# No run of a small processor stands beside one of a GPU.
RESULTS = {
    "crops": Path("docs/benchmarks/quality.json"),
    "native": Path("docs/benchmarks/quality-native.json"),
}


def main(argv: list[str] | None = None) -> int:
    """Run what is missing, write the page and return the exit status."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    profile = PROFILES[arguments.profile]
    try:
        budgets = megapixels_by_set(arguments.megapixels)
    except ValueError as error:
        parser.error(str(error))
    profile = replace(profile, megapixels={**profile.megapixels, **budgets})
    # A quick run shows that the command works; its numbers belong on no page.
    default = WORK / f"quick-{profile.name}.json" if arguments.quick else RESULTS[profile.name]
    profile = profile.quick() if arguments.quick else profile
    path = arguments.results or default
    page = arguments.page or path.with_suffix(".md")
    results = QualityResults(path, profile)
    wanted = plan_runs(
        plan_cells(arguments.sets, arguments.norms, profile), arguments.seeds, profile
    )
    try:
        done = results.runs()
        missing = [run for run in wanted if run not in done][: arguments.most_runs]
        print(estimate_text(wanted, done))
        status = 0
        if not arguments.report_only and missing:
            status = _run_all(missing, wanted, results, profile, arguments)
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(report(results.runs(), results.read(), profile))
    except (MissingDatasetError, StaleResultsError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"wrote {page}")
    return status


def megapixels_by_set(asked: list[str]) -> dict[str, float]:
    """Return the budgets that ``--megapixels`` names: a number for every set, or SET=NUMBER.

    Raises:
        ValueError: It is neither.
    """
    budgets: dict[str, float] = {}
    for text in asked:
        name, _, number = text.rpartition("=")
        if name and name not in SETS:
            raise ValueError(f"--megapixels {text}: the sets are {', '.join(SETS)}")
        budgets |= dict.fromkeys([name] if name else SETS, float(number))
    return budgets


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument(
        "--profile",
        choices=list(PROFILES),
        default="crops",
        help="windows that a processor affords, or whole frames at native size, for a GPU",
    )
    parser.add_argument("--datasets", type=Path, default=Path("../shared/datasets"))
    parser.add_argument("--work", type=Path, default=WORK, help="for run directories")
    parser.add_argument("--results", type=Path, help="a page's JSON, or under --quick in --work")
    parser.add_argument("--page", type=Path, help="beside the results unless named")
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--norms", nargs="+", choices=NORMS, default=list(NORMS))
    parser.add_argument("--seeds", type=int, default=SEEDS, help="seeds of each cell")
    parser.add_argument(
        "--megapixels",
        nargs="+",
        default=[],
        metavar="[SET=]NUMBER",
        help="another budget of a run, for all sets or for one",
    )
    parser.add_argument("--processes", type=int, default=1, help="runs at once")
    parser.add_argument("--most-runs", type=int, help="stop after so many more")
    parser.add_argument("--most-minutes", type=float, help="begin no run after so many")
    parser.add_argument("--quick", action="store_true", help="tiny runs, to see that it works")
    parser.add_argument("--report-only", action="store_true", help="write the page alone")
    parser.add_argument("--overlays", action="store_true", help="draw test frames of each run")
    return parser


def _run_all(
    missing: list[Run],
    wanted: list[Run],
    results: QualityResults,
    profile: Profile,
    arguments: argparse.Namespace,
) -> int:
    """Train every missing run; return 1 if one failed, and go on with the others."""
    begin_s = time.monotonic()
    share = Share.of_machine(arguments.processes)
    machine = {**describe_machine(), "processes": share.processes, "threads_each": share.threads}
    command = f"python -m benchmarks.quality {' '.join(sys.argv[1:])}".strip()
    results.open(machine, command, {})
    folder = arguments.work / profile.name
    versions = _versions([run.cell.set_name for run in missing], folder, profile, arguments)
    most_s = None if arguments.most_minutes is None else 60 * arguments.most_minutes
    trainings = Trainings(folder, profile, versions, share, most_s)
    finished = failed = 0
    for run, succeeded in trainings.train(missing):
        run_dir = trainings.directory(run)
        if not succeeded:
            reason = failure_of(run_dir)
            print(
                f"failed: {run.key}, {reason}, see {run_dir}/log.txt", file=sys.stderr, flush=True
            )
            failed += 1
            continue
        outcome = outcome_of(run_dir, SETS[run.cell.set_name].task)
        results.add(run, outcome, machine)
        finished += 1
        if arguments.overlays:
            draw_overlays(run_dir, versions[run.cell.set_name])
        print(f"{run.key}: {json.dumps(outcome['scores'])} ({outcome['total_s']:.0f} s)")
        print(estimate_text(wanted, results.runs(), share.processes), flush=True)
    results.note_duration(machine, runs=finished, seconds=time.monotonic() - begin_s)
    return 1 if failed else 0


def _versions(
    names: list[str], folder: Path, profile: Profile, arguments: argparse.Namespace
) -> dict[str, FrozenVersion]:
    """Freeze each of the sets once, all of them at once."""
    asked = list(dict.fromkeys(names))
    with ThreadPoolExecutor(len(asked)) as pool:
        frozen = pool.map(
            lambda name: freeze(name, arguments.datasets, folder, profile.most_frames), asked
        )
        return dict(zip(asked, frozen, strict=True))


def describe_machine() -> dict[str, Any]:
    """Return what a reader needs to know of the machine."""
    cuda = torch.cuda.is_available()
    return {
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    sys.exit(main())
