"""The life of a training job as one pure table of transitions.

queued ──► preparing ──► running ──► evaluating ──► succeeded
  ▲            └────────────┴────────────┴──► failed | cancelled | interrupted
  └── interrupted (by itself), failed and cancelled (when a person resumes them)

A row changes only by ``UPDATE … WHERE status IN (sources(target))``, so a transition that is not in
the table cannot happen, whoever asks for it and in whatever order.
"""

from enum import StrEnum


class JobStatus(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"
    PREPARING = "preparing"
    RUNNING = "running"
    EVALUATING = "evaluating"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"


_ENDINGS = frozenset(
    {JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED, JobStatus.INTERRUPTED}
)

# Forward jumps are allowed because the worker reads a run's events in batches: a short run may have
# passed a stage between two looks.
TRANSITIONS: dict[JobStatus, frozenset[JobStatus]] = {
    JobStatus.QUEUED: frozenset({JobStatus.PREPARING, JobStatus.FAILED, JobStatus.CANCELLED}),
    JobStatus.PREPARING: _ENDINGS | {JobStatus.RUNNING, JobStatus.EVALUATING},
    JobStatus.RUNNING: _ENDINGS | {JobStatus.EVALUATING},
    JobStatus.EVALUATING: _ENDINGS,
    JobStatus.INTERRUPTED: frozenset({JobStatus.QUEUED, JobStatus.FAILED, JobStatus.CANCELLED}),
    JobStatus.FAILED: frozenset({JobStatus.QUEUED}),
    JobStatus.CANCELLED: frozenset({JobStatus.QUEUED}),
    JobStatus.SUCCEEDED: frozenset(),
}

# A training program may be alive in these, and a worker owns the job.
ACTIVE = frozenset({JobStatus.PREPARING, JobStatus.RUNNING, JobStatus.EVALUATING})
TERMINAL = frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED})
RESUMABLE = frozenset({JobStatus.FAILED, JobStatus.CANCELLED, JobStatus.INTERRUPTED})


def sources(target: JobStatus) -> frozenset[JobStatus]:
    """Return the states from which ``target`` may be reached in one step."""
    return frozenset(source for source, targets in TRANSITIONS.items() if target in targets)
