"""The one place where an error becomes an answer: ``application/problem+json`` (RFC 9457)."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from data.errors import DataError
from models.errors import ModelsError
from service.api.request_id import HEADER
from service.errors import (
    Conflict,
    FileOutcome,
    FilesRejected,
    InvalidRequest,
    NotFound,
    NotReady,
    PayloadTooLarge,
    ServiceError,
    StorageError,
    TooManyRequests,
)
from service.serving.deployment_resources import Gate
from service.serving.promotion import ConstraintNotMet

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"

# The first class that matches decides, so subclasses come before their bases.
_STATUS: Mapping[type[ServiceError], HTTPStatus] = {
    PayloadTooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    InvalidRequest: HTTPStatus.UNPROCESSABLE_ENTITY,
    NotFound: HTTPStatus.NOT_FOUND,
    Conflict: HTTPStatus.CONFLICT,
    TooManyRequests: HTTPStatus.TOO_MANY_REQUESTS,
    NotReady: HTTPStatus.SERVICE_UNAVAILABLE,
    StorageError: HTTPStatus.INSUFFICIENT_STORAGE,
}


class Problem(BaseModel):
    """An error: what happened (``code``, ``detail``), where, and what to do about it (``hint``)."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "type": "urn:hairline:problem:image_truncated",
                    "title": "Image truncated",
                    "status": 422,
                    "code": "image_truncated",
                    "detail": "1 of 2 files rejected, 1 kept. First: b.jpg: ends in row 812",
                    "request_id": "req_8w1k3m5p7r9t2v4x",
                    "file": "b.jpg",
                    "where": "row 812",
                    "hint": "Copy the file from the camera again.",
                }
            ]
        }
    )

    type: str
    title: str
    status: int
    code: str
    detail: str
    request_id: str
    file: str | None = None
    where: str | None = None
    hint: str | None = None
    files: list[FileOutcome] | None = None
    gate: Gate | None = None


def install(app: FastAPI) -> None:
    """Make every error of ``app`` answer as a problem."""
    app.add_exception_handler(ServiceError, _on_service_error)
    app.add_exception_handler(DataError, _on_data_error)
    app.add_exception_handler(ModelsError, _on_models_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)
    app.add_exception_handler(Exception, _on_unexpected)


def describe(document: dict[str, Any]) -> None:
    """Replace, in an OpenAPI document, the framework's own error answers by problems."""
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas |= problem.pop("$defs", {})
    schemas["Problem"] = problem
    answer = {
        "description": "Refused or failed: the problem says where, why and what to do",
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
    for path in document["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
            operation["responses"] |= {"4XX": answer, "5XX": answer}


def problem_response(
    request: Request,
    status: int,
    code: str,
    detail: str,
    *,
    headers: Mapping[str, str] | None = None,
    **members: Any,
) -> JSONResponse:
    """Return the problem as an answer; members that are None are left out."""
    request_id = request.scope.get("state", {}).get("request_id", "req_none")
    body = {
        "type": f"urn:hairline:problem:{code}",
        "title": code.replace("_", " ").capitalize(),
        "status": status,
        "code": code,
        "detail": detail,
        "request_id": request_id,
        **{name: value for name, value in members.items() if value is not None},
    }
    return JSONResponse(
        body, status, headers={**(headers or {}), HEADER: request_id}, media_type=MEDIA_TYPE
    )


def _on_service_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, ServiceError):
        raise error
    status = next(status for kind, status in _STATUS.items() if isinstance(error, kind))
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        logger.warning("%s: %s", error.code, error.detail)
    headers = {}
    if isinstance(error, NotReady) and error.retry_after_s is not None:
        # RFC 9110, section 10.2.3, knows whole seconds alone.
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    files = None
    if isinstance(error, FilesRejected):
        files = [asdict(outcome) for outcome in error.outcomes]
    gate = error.gate if isinstance(error, ConstraintNotMet) else None
    return problem_response(
        request,
        status,
        error.code,
        error.detail,
        headers=headers,
        file=error.file,
        where=error.where,
        hint=error.hint,
        files=files,
        gate=None if gate is None else gate.model_dump(mode="json"),
    )


def _on_data_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, DataError):
        raise error
    return problem_response(
        request,
        HTTPStatus.UNPROCESSABLE_ENTITY,
        error.code,
        error.detail,
        file=error.file,
        where=error.where,
        hint=error.hint,
    )


def _on_models_error(request: Request, error: Exception) -> Response:
    from models.errors import BundleError, OutputError

    if not isinstance(error, ModelsError):
        raise error
    # A damaged bundle or a model gone wrong is the service's own; a frame or a specification came
    # with the request.
    own = isinstance(error, BundleError | OutputError)
    status = HTTPStatus.INTERNAL_SERVER_ERROR if own else HTTPStatus.UNPROCESSABLE_ENTITY
    if own:
        logger.error("%s: %s", error.code, error.detail)
    return problem_response(
        request, status, error.code, error.detail, file=error.file, hint=error.hint
    )


def _on_validation_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, RequestValidationError):
        raise error
    places = [
        {"where": _pointer(entry["loc"]), "detail": str(entry["msg"])} for entry in error.errors()
    ]
    first = places[0]
    return problem_response(
        request,
        HTTPStatus.UNPROCESSABLE_ENTITY,
        "invalid_request",
        f"{first['where']}: {first['detail']}",
        where=first["where"],
        hint="Compare the request with the service's /docs.",
        errors=places,
    )


def _pointer(location: Sequence[str | int]) -> str:
    """Return ``body``'s location as a JSON pointer (RFC 6901), any other as ``query/name``."""
    escaped = [str(part).replace("~", "~0").replace("/", "~1") for part in location]
    if escaped[:1] == ["body"]:
        return "/" + "/".join(escaped[1:])
    return "/".join(escaped)


def _on_http_exception(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    status = HTTPStatus(error.status_code)
    code = status.phrase.lower().replace(" ", "_").replace("-", "_")
    detail = error.detail
    if detail == status.phrase:
        detail = f"{request.method} {request.url.path}: {status.description or status.phrase}"
    return problem_response(
        request,
        status,
        code,
        detail,
        headers=error.headers,
        hint="The calls of this service are listed at /docs."
        if status in {HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED}
        else None,
    )


def _on_disconnect(request: Request, _error: Exception) -> Response:
    logger.info("%s %s: the client went away", request.method, request.url.path)
    # Nobody reads it; 499 is what proxies log for it.
    return Response(status_code=499)


def _on_unexpected(request: Request, error: Exception) -> Response:
    request_id = request.scope.get("state", {}).get("request_id", "req_none")
    logger.error("request %s failed", request_id, exc_info=error)
    return problem_response(
        request,
        HTTPStatus.INTERNAL_SERVER_ERROR,
        "internal_error",
        "The service failed at this request; nothing of it was kept unless an answer said so.",
        hint=f"Look for {request_id} in the service's log.",
    )
