"""A comparison is its jobs: their ids are the comparison's with the arm's number at the end."""

from collections.abc import Iterable

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.comparisons.spec import ComparisonSpec, FrameSizes, arm_specs
from service.database.tables import Job
from service.datasets.versions import get_version
from service.errors import InvalidRequest, NotFound
from service.ids import LENGTH, new_id
from service.jobs import repository as jobs

_MOST_ARMS = 9


def create(session: Session, spec: ComparisonSpec) -> tuple[str, list[Job]]:
    """Queue one job an arm; return the comparison's id and its jobs.

    Raises:
        InvalidRequest: There is no such version, or the wishes contradict each other.
    """
    try:
        version = get_version(session, spec.job.version)
    except NotFound as error:
        raise InvalidRequest(
            "unknown_version", error.detail, where="/job/version", hint=error.hint
        ) from error
    specs = arm_specs(spec, FrameSizes.of(version.statistics["sizes"]))
    comparison_id = new_id("cmp")
    made = [
        jobs.create(session, version.id, job.model_dump(mode="json"), job_id=job_id)
        for job_id, job in zip(_job_ids(comparison_id), specs.values(), strict=False)
    ]
    return comparison_id, made


def find(session: Session, comparison_id: str) -> list[Job]:
    """Return a comparison's jobs in the order of its arms.

    Raises:
        NotFound: There is no such comparison.
    """
    found = list(
        session.scalars(select(Job).where(Job.id.in_(_job_ids(comparison_id))).order_by(Job.id))
    )
    if not found or not comparison_id.startswith("cmp_"):
        raise NotFound(
            "comparison_not_found",
            f"there is no comparison {comparison_id}",
            hint="POST /comparisons makes one; GET /jobs shows which comparison a job belongs to",
        )
    return found


def comparison_of(job_id: str) -> str | None:
    """Return the comparison that a job is an arm of, None for a job of its own."""
    suffix = job_id.removeprefix("job_")
    return f"cmp_{suffix[:LENGTH]}" if len(suffix) == LENGTH + 1 else None


def _job_ids(comparison_id: str) -> Iterable[str]:
    suffix = comparison_id.removeprefix("cmp_")
    return [f"job_{suffix}{number}" for number in range(1, _MOST_ARMS + 1)]
