"""``/comparisons``: does full resolution pay on this data?"""

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse

from service.api.dependencies import ReadSession, StorageDependency, WriteSession
from service.api.idempotency import IdempotencyKey, create_once
from service.api.negotiation import Form, wants_html
from service.comparisons import repository
from service.comparisons.page import render_page
from service.comparisons.resources import ComparisonResource
from service.comparisons.spec import ComparisonSpec
from service.comparisons.view import view

router = APIRouter(tags=["comparisons"])


@router.post(
    "/comparisons",
    status_code=201,
    response_model=ComparisonResource,
    summary="Compare resolutions",
)
def create_comparison(
    spec: ComparisonSpec,
    session: WriteSession,
    storage: StorageDependency,
    key: IdempotencyKey = None,
) -> Response:
    """Queue one training job an arm, alike in all but the resolution."""
    wishes = spec.model_dump(mode="json")

    def create() -> tuple[int, dict[str, object]]:
        comparison_id, jobs = repository.create(session, spec)
        return 201, view(storage, comparison_id, jobs).model_dump(mode="json")

    status, body = create_once(
        session, key, operation="POST /comparisons", request=wishes, create=create
    )
    return JSONResponse(body, status, headers={"Location": f"/comparisons/{body['id']}"})


@router.get(
    "/comparisons/{comparison_id}",
    summary="Look at a comparison",
    response_model=ComparisonResource,
    responses={200: {"content": {"text/html": {}}}},
)
def get_comparison(
    comparison_id: str,
    request: Request,
    session: ReadSession,
    storage: StorageDependency,
    form: Form = None,
) -> Response:
    """Return the arms side by side, and what is different between them, as far as they are."""
    found = view(storage, comparison_id, repository.find(session, comparison_id))
    vary = {"Vary": "Accept", "Cache-Control": "no-store"}
    if wants_html(form, request.headers.get("Accept", "")):
        return HTMLResponse(render_page(found), headers=vary)
    return JSONResponse(found.model_dump(mode="json"), headers=vary)
