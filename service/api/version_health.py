"""What is wrong with a version, for programs (JSON) and for people (one HTML file)."""

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse

from data.health import DEFAULT_STRIDE_PX
from service.api.dependencies import EngineDependency, MeasurerDependency, StorageDependency
from service.api.negotiation import Form, wants_html
from service.datasets.health import VersionHealth, examine
from service.datasets.health_page import render_page
from service.datasets.resources import FindingResource, MeasuredPixels, VersionHealthResource

router = APIRouter(tags=["data-set versions"])

# A proxy gives up after a minute or two, and a person sooner.
_MOST_WAIT_S = 30.0
# A hundred frames of 5 megapixels are measured in it.
_WAIT_S = 5.0


@router.get(
    "/versions/{version_id}/health",
    summary="What is wrong with a version",
    response_model=VersionHealthResource,
    responses={200: {"content": {"text/html": {}}}},
)
def read_health(
    version_id: str,
    request: Request,
    engine: EngineDependency,
    storage: StorageDependency,
    measurer: MeasurerDependency,
    stride_px: Annotated[
        int, Query(ge=1, le=64, description="Of the network's finest features.")
    ] = DEFAULT_STRIDE_PX,
    wait_s: Annotated[
        float,
        Query(ge=0, le=_MOST_WAIT_S, description="How long to wait for frames being measured."),
    ] = _WAIT_S,
    form: Form = None,
) -> Response:
    """Return findings with examples and remedies.

    The first call for a version measures its frames in the background and answers after `wait_s`
    with what is known by then; `pixels` says how far it is, `unchecked` what was not looked at.
    """
    health = examine(engine, storage, measurer, version_id, stride_px=stride_px, wait_s=wait_s)
    vary = {"Vary": "Accept", "Cache-Control": "no-store"}
    if wants_html(form, request.headers.get("Accept", "")):
        return HTMLResponse(render_page(health, storage), headers=vary)
    return JSONResponse(_answer(health).model_dump(mode="json"), headers=vary)


def _answer(health: VersionHealth) -> VersionHealthResource:
    return VersionHealthResource(
        version=health.version_id,
        findings=[FindingResource(**asdict(finding)) for finding in health.findings],
        pixels=MeasuredPixels(
            measured=health.measured, of=len(health.manifest.items), oldest=health.oldest
        ),
        unchecked=list(health.unchecked),
        page=f"/versions/{health.version_id}/health?format=html",
    )
