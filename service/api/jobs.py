"""``/jobs``: queueing, watching, cancelling and resuming training jobs."""

import threading
from collections.abc import AsyncIterator
from typing import Annotated

import anyio
from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool

from service import weights
from service.api.dependencies import (
    ReadSession,
    SettingsDependency,
    StorageDependency,
    WriteSession,
)
from service.api.idempotency import IdempotencyKey, create_once
from service.api.paging import Cursor, Limit, Page, fetch_page
from service.database.tables import Job
from service.errors import NotFound
from service.jobs import repository
from service.jobs.events import Event, EventReader
from service.jobs.run_directory import TRAINING_FRAMES_FILE, read_log_tail
from service.jobs.spec import JobSpec
from service.jobs.states import TERMINAL, JobStatus
from service.resources import JobResource, MetricsRecord, PreflightResource

router = APIRouter(tags=["jobs"])

_EVENT_POLL_S = 0.5
# Proxies commonly close a connection that was silent for a minute.
_KEEP_ALIVE_S = 15.0


def job_resource(job: Job) -> JobResource:
    """Return what the API says of a job's row."""
    return JobResource.model_validate(
        {
            "id": job.id,
            "version": job.version_id,
            "status": job.status,
            "spec": job.spec,
            "progress": job.progress,
            "metrics": job.metrics,
            "warnings": job.warnings,
            "error": job.error,
            "cancel_requested": job.cancel_requested,
            "attempts": job.attempts,
            "model": job.model_id,
            "created_at": job.created_at,
            "started_at": job.started_at,
            "finished_at": job.finished_at,
        }
    )


@router.post("/jobs", status_code=201, response_model=JobResource)
def create_job(
    spec: JobSpec,
    session: WriteSession,
    storage: StorageDependency,
    settings: SettingsDependency,
    key: IdempotencyKey = None,
) -> Response:
    """Queue a training job on a frozen version; what is left out takes its default."""
    wishes = spec.model_dump(mode="json")

    def create() -> tuple[int, dict[str, object]]:
        weights.check_start(session, storage, settings.resolved_weights_dir, spec)
        job = repository.create(session, spec.version, wishes)
        return 201, job_resource(job).model_dump(mode="json")

    status, body = create_once(session, key, operation="POST /jobs", request=wishes, create=create)
    return JSONResponse(body, status, headers={"Location": f"/jobs/{body['id']}"})


@router.get("/jobs")
def list_jobs(
    session: ReadSession,
    status: JobStatus | None = None,
    limit: Limit = 50,
    cursor: Cursor = None,
) -> Page[JobResource]:
    """List jobs, newest first."""
    rows, following = fetch_page(
        session,
        repository.jobs_in(status),
        order=(Job.created_at, Job.id),
        limit=limit,
        cursor=cursor,
        descending=True,
    )
    return Page(items=[job_resource(job) for job in rows], next_cursor=following)


@router.get("/jobs/{job_id}")
def get_job(job_id: str, session: ReadSession) -> JobResource:
    """Return a job: its state, progress, latest metrics, and why it failed if it did."""
    return job_resource(repository.get(session, job_id))


@router.post("/jobs/{job_id}:cancel", status_code=202)
def cancel_job(job_id: str, session: WriteSession) -> JobResource:
    """Ask a job to stop; one that is still waiting is cancelled at once."""
    return job_resource(repository.request_cancel(session, job_id))


@router.post("/jobs/{job_id}:resume", status_code=202)
def resume_job(job_id: str, session: WriteSession) -> JobResource:
    """Queue a failed, cancelled or interrupted job again; it goes on from its last checkpoint."""
    return job_resource(repository.request_resume(session, job_id))


@router.get("/jobs/{job_id}/metrics")
def get_metrics(
    job_id: str,
    session: ReadSession,
    storage: StorageDependency,
    after: Annotated[int, Query(ge=0, description="Only events with a larger `seq`.")] = 0,
) -> Page[MetricsRecord]:
    """Return every metrics event of a job's run, oldest first."""
    repository.get(session, job_id)
    events = EventReader(storage.run_dir(job_id)).read_all()
    records = [
        MetricsRecord.model_validate(event.data)
        for event in events
        if event.kind == "metrics" and event.seq > after
    ]
    return Page(items=records)


@router.get("/jobs/{job_id}/preflight")
def get_preflight(
    job_id: str, session: ReadSession, storage: StorageDependency
) -> PreflightResource:
    """Return what memory and time a job was estimated to take, and what it gave up to fit.

    The worker estimates a job before its first step; a job with ``dry_run`` ends there.
    """
    status = repository.get(session, job_id).status
    events = EventReader(storage.run_dir(job_id)).read_all()
    found = [event.data for event in events if event.kind == "preflight"]
    if not found:
        raise NotFound(
            "preflight_not_made",
            f"job {job_id} is {status} and has not been estimated",
            hint="it is estimated before the first step; look again when the job is running",
        )
    steps_down = [event.data for event in events if event.kind == "memory_step_down"]
    return PreflightResource.model_validate({**found[-1], "rungs": steps_down})


@router.get("/jobs/{job_id}/logs", response_class=PlainTextResponse)
def get_logs(
    job_id: str,
    session: ReadSession,
    storage: StorageDependency,
    max_bytes: Annotated[int, Query(gt=0, le=1024 * 1024)] = 65_536,
) -> str:
    """Return the end of what the training program printed."""
    repository.get(session, job_id)
    return read_log_tail(storage.run_dir(job_id), max_bytes=max_bytes)


@router.get(
    "/jobs/{job_id}/training-frames",
    response_class=FileResponse,
    responses={200: {"content": {"image/png": {}}, "description": "A contact sheet."}},
)
def get_training_frames(
    job_id: str, session: ReadSession, storage: StorageDependency
) -> FileResponse:
    """Return what training sees: its first frames or windows, varied, with labels outlined."""
    status = repository.get(session, job_id).status
    sheet = storage.run_dir(job_id) / TRAINING_FRAMES_FILE
    if not sheet.is_file():
        raise NotFound(
            "training_frames_not_drawn",
            f"job {job_id} is {status} and has drawn no training frames",
            hint="they are drawn before the first step; look again when the job is running",
        )
    return FileResponse(sheet, media_type="image/png")


@router.get(
    "/jobs/{job_id}/events",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {}}, "description": "Server-sent events."}},
)
async def stream_events(
    job_id: str,
    request: Request,
    storage: StorageDependency,
    last_event_id: Annotated[int, Header(ge=0)] = 0,
) -> StreamingResponse:
    """Stream a run's events as they are written, with ``seq`` as their id.

    A reader that lost the connection sends ``Last-Event-ID`` and misses nothing.  When the job has
    ended, a last ``status`` event without an id says how, and the stream ends.
    """
    await run_in_threadpool(_status, request, job_id)
    stream = _follow(request, job_id, EventReader(storage.run_dir(job_id)), last_event_id)
    return StreamingResponse(
        stream, media_type="text/event-stream", headers={"Cache-Control": "no-store"}
    )


async def _follow(
    request: Request, job_id: str, reader: EventReader, after: int
) -> AsyncIterator[str]:
    silent_s = 0.0
    # Set when the server is asked to stop: a stream has no end of its own to wait for.
    stopping: threading.Event = getattr(request.app.state, "stopping", threading.Event())
    while not stopping.is_set():
        # The state is read first: events read after a job has ended are all of them.
        status = await run_in_threadpool(_status, request, job_id)
        events = [event for event in await run_in_threadpool(reader.read_all) if event.seq > after]
        for event in events:
            yield _frame(event)
        if status in TERMINAL:
            yield f'event: status\ndata: {{"status":"{status}"}}\n\n'
            return
        silent_s = 0.0 if events else silent_s + _EVENT_POLL_S
        if silent_s >= _KEEP_ALIVE_S:
            yield ": still here\n\n"
            silent_s = 0.0
        await anyio.sleep(_EVENT_POLL_S)


def _status(request: Request, job_id: str) -> str:
    with request.app.state.read_sessions() as session:
        return repository.get(session, job_id).status


def _frame(event: Event) -> str:
    return f"id: {event.seq}\nevent: {event.kind}\ndata: {event.text}\n\n"
