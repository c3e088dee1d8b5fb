"""What a run's report says, for programs (JSON) and for people (one HTML file)."""

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse

from service import model_registry
from service.api.dependencies import ReadSession, StorageDependency
from service.api.negotiation import Form, wants_html
from service.jobs import reports, repository

router = APIRouter()

_PAGE: dict[int | str, dict[str, Any]] = {200: {"content": {"text/html": {}}}}
_HEADERS = {
    "Vary": "Accept",
    # The page brings its pictures and its style; nothing else is to be loaded or run.
    "Content-Security-Policy": "default-src 'none'; img-src data:; style-src 'unsafe-inline'",
}


@router.get("/jobs/{job_id}/report", tags=["jobs"], response_model=dict[str, Any], responses=_PAGE)
def get_job_report(
    job_id: str,
    request: Request,
    session: ReadSession,
    storage: StorageDependency,
    form: Form = None,
) -> Response:
    """Return the report of a job's run: figures, curves, thresholds and on what they rest.

    As HTML it is one page with plots and the worst misses and false alarms.
    """
    status = repository.get(session, job_id).status
    run_dir = storage.run_dir(job_id)
    if wants_html(form, request.headers.get("Accept", "")):
        return HTMLResponse(reports.read_report_page(run_dir, status), headers=_HEADERS)
    return JSONResponse(reports.read_report(run_dir, status), headers=_HEADERS)


@router.get(
    "/models/{model_id}/report", tags=["models"], response_model=dict[str, Any], responses=_PAGE
)
def get_model_report(
    model_id: str,
    request: Request,
    session: ReadSession,
    storage: StorageDependency,
    form: Form = None,
) -> Response:
    """Return the training report: metrics, baselines, thresholds, what was normalized and how.

    As HTML it is the page of the job that trained the model.
    """
    model = model_registry.get(session, model_id)
    if wants_html(form, request.headers.get("Accept", "")):
        status = repository.get(session, model.job_id).status
        page = reports.read_report_page(storage.run_dir(model.job_id), status)
        return HTMLResponse(page, headers=_HEADERS)
    return JSONResponse(model.report, headers=_HEADERS)
