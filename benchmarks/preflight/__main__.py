"""``python -m benchmarks.preflight COMMAND``: estimates against measured peaks.

``runs`` trains for two steps and evaluates, in a program of its own for each configuration, and
compares the estimate made before the first step with the program's peak.  ``steps`` does so for the
training steps alone, which is quicker.  ``ladder`` makes one step at 2500x2000 for batches of one
and two frames with each step down.  ``page`` writes the page again.
"""

import argparse
import sys
from pathlib import Path

from benchmarks.preflight.ladder_steps import measure_cell, measure_ladder
from benchmarks.preflight.page import write_page
from benchmarks.preflight.runs import measure_runs
from benchmarks.preflight.steps import measure_steps

RESULTS = Path("docs/benchmarks/preflight.json")
PAGE = Path("docs/benchmarks/preflight.md")


def main() -> int:
    """Run one command and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.preflight", description=__doc__)
    parser.add_argument("command", choices=("runs", "steps", "ladder", "page", "cell"))
    parser.add_argument("--work", type=Path, default=Path("benchmark-results/preflight"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--cell", help="used by `ladder`, which makes each cell in its own program")
    parser.add_argument("--estimate-only", action="store_true", help="of `ladder`: make no step")
    arguments = parser.parse_args()
    if arguments.command == "cell":
        measure_cell(arguments.cell, arguments.work, estimate_only=arguments.estimate_only)
        return 0
    if arguments.command == "runs":
        measure_runs(arguments.work, arguments.results)
    elif arguments.command == "steps":
        measure_steps(arguments.work, arguments.results)
    elif arguments.command == "ladder":
        measure_ladder(arguments.work, arguments.results, estimate_only=arguments.estimate_only)
    write_page(arguments.results, arguments.page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
