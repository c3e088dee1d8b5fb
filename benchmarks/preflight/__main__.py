"""``python -m benchmarks.preflight COMMAND``: estimates against measured peaks.

``runs`` trains for two steps and evaluates, in a program of its own for each configuration, and
compares the estimate made before the first step with the program's peak.  ``steps`` does so for the
training steps alone, which is quicker.  ``ladder`` makes steps at 2500x2000 for batches of one and
two frames with each step down.  ``page`` writes the page again.

A CPU's results and a GPU's are kept in files of their own and stand beside each other on the page.
"""

import argparse
import sys
from pathlib import Path

import torch

from benchmarks.preflight.ladder_steps import measure_ladder
from benchmarks.preflight.page import write_page
from benchmarks.preflight.runs import measure_runs
from benchmarks.preflight.steps import measure_steps

RESULTS = Path("docs/benchmarks/preflight.json")
GPU_RESULTS = Path("docs/benchmarks/preflight-gpu.json")
PAGE = Path("docs/benchmarks/preflight.md")


def main() -> int:
    """Run one command and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.preflight", description=__doc__)
    parser.add_argument("command", choices=("runs", "steps", "ladder", "page"))
    parser.add_argument("--work", type=Path, default=Path("benchmark-results/preflight"))
    parser.add_argument("--results", type=Path, help="not a page's own files, but this one alone")
    parser.add_argument("--page", type=Path, help=f"{PAGE}, or beside --results")
    parser.add_argument("--estimate-only", action="store_true", help="of `ladder`: make no step")
    parser.add_argument("--only", default="", help="part of the names that `runs`, `steps` measure")
    arguments = parser.parse_args()
    own = GPU_RESULTS if torch.cuda.is_available() else RESULTS
    results = arguments.results or own
    if arguments.command == "runs":
        measure_runs(arguments.work, results, arguments.only)
    elif arguments.command == "steps":
        measure_steps(arguments.work, results, arguments.only)
    elif arguments.command == "ladder":
        measure_ladder(arguments.work, results, estimate_only=arguments.estimate_only)
    if arguments.results is None:
        write_page([RESULTS, GPU_RESULTS], arguments.page or PAGE)
    else:
        write_page([results], arguments.page or results.with_suffix(".md"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
