"""The table of states says what a job may become, and nothing else happens."""

from service.jobs.states import ACTIVE, RESUMABLE, TERMINAL, TRANSITIONS, JobStatus, sources


def test_a_succeeded_job_never_changes_again() -> None:
    assert TRANSITIONS[JobStatus.SUCCEEDED] == frozenset()


def test_every_active_job_can_end_in_every_way() -> None:
    for status in ACTIVE:
        assert TERMINAL | {JobStatus.INTERRUPTED} <= TRANSITIONS[status]


def test_only_the_queue_leads_to_work() -> None:
    assert sources(JobStatus.PREPARING) == {JobStatus.QUEUED}


def test_what_is_resumable_is_what_leads_back_to_the_queue() -> None:
    assert sources(JobStatus.QUEUED) == RESUMABLE


def test_stages_go_forward_only() -> None:
    order = [JobStatus.PREPARING, JobStatus.RUNNING, JobStatus.EVALUATING]
    for index, status in enumerate(order):
        assert not TRANSITIONS[status] & set(order[: index + 1])
