"""``python -m training.report RUN_DIR`` draws the page of a finished run again."""

import logging
import sys
from pathlib import Path

from training.report.page import write_page
from training.run_directory import RunDirectory

_USAGE = 2


def main(arguments: list[str]) -> int:
    """Draw the page and return the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logger = logging.getLogger(__name__)
    if len(arguments) != 1:
        logger.error("usage: python -m training.report RUN_DIR")
        return _USAGE
    run = RunDirectory(Path(arguments[0]))
    if not run.report.is_file():
        logger.error("%s holds no %s: the run has not finished", run.path, run.report.name)
        return 1
    write_page(run)
    logger.info("%s", run.page)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
