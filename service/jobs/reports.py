"""The report that a job's run leaves, and the page of it."""

from pathlib import Path
from typing import Any

from service import model_registry
from service.errors import NotFound
from service.jobs.run_directory import REPORT_FILE, REPORT_PAGE_FILE


def read_report(run_dir: Path, status: str) -> dict[str, Any]:
    """Return a run's report.

    Args:
        run_dir: The run's directory.
        status: Of its job, for the error.

    Raises:
        NotFound: It is not written yet.
        StorageError: It is damaged.
    """
    _check_written(run_dir, status)
    return model_registry.read_report(run_dir)


def read_report_page(run_dir: Path, status: str) -> str:
    """Return a run's report as HTML.

    Args:
        run_dir: The run's directory.
        status: Of its job, for the error.

    Raises:
        NotFound: It is not written yet, or was written before reports had a page.
    """
    _check_written(run_dir, status)
    try:
        return (run_dir / REPORT_PAGE_FILE).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise NotFound(
            "report_page_not_written",
            f"the run of {run_dir.name} has a report, but no page of it",
            hint="ask for format=json, or draw it on the server: python -m training.report RUN_DIR",
        ) from error


def _check_written(run_dir: Path, status: str) -> None:
    if not (run_dir / REPORT_FILE).is_file():
        raise NotFound(
            "report_not_written",
            f"job {run_dir.name} is {status} and has no report",
            hint="it is written at the end; GET /jobs/{id} says how far the job is",
        )
