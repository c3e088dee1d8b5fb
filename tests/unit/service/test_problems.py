import sqlite3
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from data import ImageError
from models.errors import BundleError, FrameError
from service.api import problems
from service.api.app import create_app
from service.api.request_id import RequestIdMiddleware
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
)
from service.settings import Settings


def _answer(error: Exception) -> Any:
    app = FastAPI()
    problems.install(app)
    app.add_middleware(RequestIdMiddleware)

    @app.get("/")
    def fail() -> None:
        raise error

    with TestClient(app, raise_server_exceptions=False) as client:
        return client.get("/")


def test_what_is_not_ready_says_when_to_ask_again_if_it_knows() -> None:
    assert _answer(NotReady("busy", "many wait", retry_after_s=2.1)).headers["retry-after"] == "3"
    assert _answer(NotReady("busy", "many wait", retry_after_s=0.02)).headers["retry-after"] == "1"
    assert "retry-after" not in _answer(NotReady("busy", "many wait")).headers


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (InvalidRequest, 422),
        (PayloadTooLarge, 413),
        (NotFound, 404),
        (Conflict, 409),
        (NotReady, 503),
        (StorageError, 507),
    ],
)
def test_each_error_of_the_service_has_its_status(kind: type[ServiceError], status: int) -> None:
    answer = _answer(kind("some_code", "what happened", file="a.png", where="line 3", hint="do"))
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json() == {
        "type": "urn:hairline:problem:some_code",
        "title": "Some code",
        "status": status,
        "code": "some_code",
        "detail": "what happened",
        "request_id": answer.headers["X-Request-Id"],
        "file": "a.png",
        "where": "line 3",
        "hint": "do",
    }


def test_every_error_of_the_service_has_a_status() -> None:
    def leaves(kind: type[ServiceError]) -> list[type[ServiceError]]:
        below = kind.__subclasses__()
        return [leaf for child in below for leaf in leaves(child)] if below else [kind]

    for kind in leaves(ServiceError):
        if kind is not FilesRejected:
            assert 400 <= _answer(kind("code", "detail")).status_code < 600


def test_members_that_say_nothing_are_left_out() -> None:
    assert "file" not in _answer(NotFound("x", "y")).json()


def test_rejected_files_are_all_listed() -> None:
    outcomes = (FileOutcome("a", "accepted"), FileOutcome("b", "rejected", code="c", detail="d"))
    body = _answer(FilesRejected(outcomes)).json()
    assert [file["outcome"] for file in body["files"]] == ["accepted", "rejected"]
    assert body["detail"].startswith("1 of 2 files rejected, 1 kept")


def test_an_error_of_a_file_is_the_senders() -> None:
    answer = _answer(ImageError("image_damaged", "cut off", file="a.jpg", where="byte 9", hint="h"))
    assert answer.status_code == 422
    assert (answer.json()["file"], answer.json()["where"]) == ("a.jpg", "byte 9")


def test_a_frame_that_does_not_suit_is_the_senders_and_a_damaged_bundle_ours() -> None:
    assert _answer(FrameError("frame_bit_depth", "16 bit")).status_code == 422
    assert _answer(BundleError("bundle_damaged", "no weights")).status_code == 500


def test_an_unexpected_error_tells_the_request_and_no_secret(
    caplog: pytest.LogCaptureFixture,
) -> None:
    answer = _answer(sqlite3.OperationalError("password=swordfish"))
    assert answer.status_code == 500
    assert "swordfish" not in answer.text
    request_id = answer.json()["request_id"]
    assert request_id.startswith("req_")
    assert answer.headers["X-Request-Id"] == request_id
    assert request_id in answer.json()["hint"]
    assert request_id in caplog.text


def test_each_request_has_its_own_id_whatever_the_caller_says(client: TestClient) -> None:
    headers = {"X-Request-Id": "mine"}
    first = client.get("/healthz", headers=headers).headers["X-Request-Id"]
    second = client.get("/healthz", headers=headers).headers["X-Request-Id"]
    assert first.startswith("req_")
    assert first != second


def test_unknown_paths_and_methods_are_problems_too(client: TestClient) -> None:
    unknown = client.get("/nothing")
    assert (unknown.status_code, unknown.json()["code"]) == (404, "not_found")
    method = client.delete("/datasets")
    assert (method.status_code, method.json()["code"]) == (405, "method_not_allowed")
    assert method.headers["Allow"]


def test_an_invalid_body_names_each_place_by_json_pointer(client: TestClient) -> None:
    body = {"name": "a", "task": "guessing", "classes": ["x", ""], "colour": 1}
    problem = client.post("/datasets", json=body).json()
    assert (problem["status"], problem["code"]) == (422, "invalid_request")
    assert {error["where"] for error in problem["errors"]} == {"/task", "/classes/1", "/colour"}
    assert problem["where"] == "/task"
    assert client.get("/datasets?limit=0").json()["where"] == "query/limit"


def test_broken_json_is_a_problem(client: TestClient) -> None:
    answer = client.post("/datasets", content=b"{", headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")


def test_the_openapi_document_promises_problems(settings: Settings) -> None:
    document = create_app(settings).openapi()
    schemas = document["components"]["schemas"]
    assert "request_id" in schemas["Problem"]["properties"]
    assert "HTTPValidationError" not in schemas
    for path in document["paths"].values():
        for operation in path.values():
            assert "application/problem+json" in operation["responses"]["4XX"]["content"]


def test_every_body_in_the_openapi_document_has_an_example(settings: Settings) -> None:
    document = create_app(settings).openapi()
    schemas = document["components"]["schemas"]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            for content in operation.get("requestBody", {}).get("content", {}).values():
                schema = content["schema"]
                named = schemas.get(schema.get("$ref", "").rpartition("/")[2], schema)
                binary = named.get("format") == "binary"
                assert binary or "examples" in named or "example" in content, f"{method} {path}"
