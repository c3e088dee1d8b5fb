"""``python -m training RUN_DIR``: run or resume the run in a directory."""

import argparse
import logging
import os
import sys
from pathlib import Path

from training.exit_status import EXIT_AGAIN
from training.run_directory import RunDirectory

# Enough that the line's process gets nearly all of a core that both want.
YIELDING_NICENESS = 10


def main() -> int:
    """Parse the command line, run, and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m training",
        description="Train as RUN_DIR/config.json says; killed, the same command goes on.",
    )
    parser.add_argument("run_dir", type=Path, help="a directory that holds config.json")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    if not arguments.run_dir.is_dir():
        parser.error(f"{arguments.run_dir} is not a directory")
    # On a machine that trains and serves, waiting threads must not spin for a core that the other
    # process needs.  OpenMP reads this when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # A run that makes way for a line leaves it the processor within its steps, too.
    if RunDirectory(arguments.run_dir).yield_request.exists():
        _be_at_least_as_nice_as(YIELDING_NICENESS)
    # Here and not at the top, so that a wrong argument is answered without seconds of imports.
    from training.run import execute

    status = execute(arguments.run_dir)
    if status == EXIT_AGAIN:
        # In the place of this program, whose caller waits for the run and not for one attempt.
        logging.shutdown()
        os.execv(sys.executable, sys.orig_argv)  # noqa: S606 - this very command, and no shell.
    return status


def _be_at_least_as_nice_as(niceness: int) -> None:
    # A program that took another one's place has its niceness already.
    if os.getpriority(os.PRIO_PROCESS, 0) < niceness:
        os.setpriority(os.PRIO_PROCESS, 0, niceness)


if __name__ == "__main__":
    sys.exit(main())
