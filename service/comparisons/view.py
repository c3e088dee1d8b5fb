"""A comparison as it stands: its jobs' rows, and what the finished ones have left on disk."""

from collections.abc import Sequence

from service.comparisons.findings import findings, notes
from service.comparisons.outcomes import ArmOutcomes, read_outcomes
from service.comparisons.resources import (
    ArmResource,
    ArmResult,
    ComparisonResource,
)
from service.comparisons.results import arm_result, compare_arms
from service.comparisons.spec import Arm, arm_of, equal_of
from service.database.tables import Job
from service.jobs.spec import JobSpec
from service.jobs.states import TERMINAL, JobStatus
from service.model_registry import read_report
from service.resources import JobError
from service.storage import Storage


def view(storage: Storage, comparison_id: str, jobs: Sequence[Job]) -> ComparisonResource:
    """Return a comparison's arms side by side, as far as they have come.

    Raises:
        StorageError: A finished run's files are missing or damaged.
    """
    specs = [JobSpec.model_validate(job.spec) for job in jobs]
    names = [arm_of(spec) for spec in specs]
    outcomes: dict[str, ArmOutcomes] = {}
    results: dict[str, ArmResult] = {}
    for name, job in zip(names, jobs, strict=True):
        if job.status == JobStatus.SUCCEEDED:
            run_dir = storage.run_dir(job.id)
            outcomes[name] = read_outcomes(run_dir)
            results[name] = arm_result(read_report(run_dir), outcomes[name])
    reference = "native" if "native" in names else names[0]
    pairs = compare_arms(results, outcomes, reference)
    equal = equal_of(specs[0].budget)
    grouped = any(each.is_grouped for each in outcomes.values())
    return ComparisonResource(
        id=comparison_id,
        version=jobs[0].version_id,
        equal=equal,
        created_at=jobs[0].created_at,
        has_ended=all(job.status in TERMINAL for job in jobs),
        arms=tuple(
            _arm(name, job, spec, results.get(name))
            for name, job, spec in zip(names, jobs, specs, strict=True)
        ),
        pairs=tuple(pairs),
        findings=tuple(findings(results, pairs, reference)),
        notes=tuple(notes(equal, results, pairs, grouped=grouped)),
        page=f"/comparisons/{comparison_id}?format=html",
    )


def _arm(name: Arm, job: Job, spec: JobSpec, result: ArmResult | None) -> ArmResource:
    return ArmResource(
        name=name,
        job=job.id,
        status=job.status,
        fraction=(job.progress or {}).get("fraction"),
        error=None if job.error is None else JobError.model_validate(job.error),
        model=job.model_id,
        resolution=spec.resolution.model_dump(mode="json"),
        budget=spec.budget.model_dump(mode="json"),
        result=result,
    )
