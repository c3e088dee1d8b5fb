"""``python -m benchmarks.quality``: train as a user would on real sets, and write the table.

Each run is a run directory and ``python -m training`` over it.  Its outcome is stored when it has
finished, and a run that is stored is never repeated: the command can be stopped at any time and
goes on where it was, within a run from its last checkpoint.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.norm.processor import processor_name
from benchmarks.quality.outcome import outcome_of
from benchmarks.quality.overlays import draw_overlays
from benchmarks.quality.protocol import (
    FULL,
    NORMS,
    QUICK,
    SEEDS,
    SETS,
    Profile,
    Run,
    plan_cells,
    run_config,
)
from benchmarks.quality.report import estimate_text, report
from benchmarks.quality.results import QualityResults
from benchmarks.quality.versions import FrozenVersion, MissingDatasetError, freeze
from benchmarks.runs_file import StaleResultsError

WORK = Path("benchmark-results/quality")
RESULTS = Path("docs/benchmarks/quality.json")
PAGE = Path("docs/benchmarks/quality.md")


def main(argv: list[str] | None = None) -> int:
    """Run what is missing, write the page and return the exit status."""
    arguments = _parser().parse_args(argv)
    profile = QUICK if arguments.quick else FULL
    # A quick run shows that the command works; its numbers belong on no page.
    results_path = arguments.results or (WORK / "quick.json" if arguments.quick else RESULTS)
    page = arguments.page or (WORK / "quick.md" if arguments.quick else PAGE)
    results = QualityResults(results_path, profile)
    cells = plan_cells(arguments.sets, arguments.norms)
    wanted = [Run(cell, seed) for seed in range(arguments.seeds) for cell in cells]
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("--datasets", type=Path, default=Path("../shared/datasets"))
    parser.add_argument("--work", type=Path, default=WORK, help="for run directories")
    parser.add_argument("--results", type=Path, help=f"{RESULTS}, or under --quick in {WORK}")
    parser.add_argument("--page", type=Path, help=f"{PAGE}, or under --quick in {WORK}")
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--norms", nargs="+", choices=NORMS, default=list(NORMS))
    parser.add_argument("--seeds", type=int, default=SEEDS, help="seeds of each cell")
    parser.add_argument("--most-runs", type=int, help="stop after so many more")
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
    machine = describe_machine()
    command = "python -m benchmarks.quality " + " ".join(sys.argv[1:])
    results.open(machine, command.strip(), {})
    versions: dict[str, FrozenVersion] = {}
    status = 0
    for run in missing:
        name = run.cell.set_name
        if name not in versions:
            folder = arguments.work / profile.name
            versions[name] = freeze(name, arguments.datasets, folder, profile.most_frames)
        run_dir = arguments.work / profile.name / run.key
        if not _train(run, run_dir, versions[name], profile):
            print(f"failed: {run.key}, see {run_dir}/log.txt", file=sys.stderr, flush=True)
            status = 1
            continue
        outcome = outcome_of(run_dir, SETS[name].task)
        results.add(run, outcome, machine)
        if arguments.overlays:
            draw_overlays(run_dir, versions[name])
        print(f"{run.key}: {json.dumps(outcome['scores'])} ({outcome['total_s']:.0f} s)")
        print(estimate_text(wanted, results.runs()), flush=True)
    return status


def _train(run: Run, run_dir: Path, version: FrozenVersion, profile: Profile) -> bool:
    """Train, or go on training, in a run directory.

    Raises:
        StaleResultsError: The directory holds a run of other settings.
    """
    config = run_config(
        run,
        profile,
        mean_frame_area_px=version.mean_area_px,
        manifest=str(version.manifest),
        root=str(version.root),
    )
    text = json.dumps(config, indent=2)
    path = run_dir / "config.json"
    run_dir.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.read_text() != text:
        raise StaleResultsError(
            f"{run_dir} holds a run of other settings; remove it or name another folder with --work"
        )
    path.write_text(text)
    if (run_dir / "report.json").exists():
        # Killed between the run's end and the writing of its outcome.
        return True
    with (run_dir / "log.txt").open("ab") as log:
        command = [sys.executable, "-m", "training", str(run_dir)]
        done = subprocess.run(command, stdout=log, stderr=log, check=False)  # noqa: S603 - ours.
    return done.returncode == 0 and (run_dir / "report.json").exists()


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
