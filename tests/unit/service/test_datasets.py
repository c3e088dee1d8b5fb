from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine, update

from service.api.idempotency import KEPT_FOR
from service.database.engine import session_factory
from service.database.tables import IdempotencyRecord, now_utc

RINGS = {"name": "rings", "task": "segmentation", "classes": ["scratch", "pit"]}


def test_a_created_data_set_is_where_its_location_says(client: TestClient) -> None:
    answer = client.post("/datasets", json=RINGS)
    assert answer.status_code == 201
    created = answer.json()
    assert client.get(answer.headers["Location"]).json() == created
    assert created["id"].startswith("ds_")
    assert created["classes"] == ["scratch", "pit"]
    assert created["created_at"].endswith("Z")
    assert datetime.fromisoformat(created["created_at"]) <= now_utc()


def test_data_sets_are_listed_by_name(client: TestClient) -> None:
    for name in ("b", "a", "c"):
        client.post("/datasets", json={"name": name, "task": "detection"})
    first = client.get("/datasets?limit=2").json()
    assert [dataset["name"] for dataset in first["items"]] == ["a", "b"]
    rest = client.get(f"/datasets?limit=2&cursor={first['next_cursor']}").json()
    assert [dataset["name"] for dataset in rest["items"]] == ["c"]


def test_a_name_is_given_once(client: TestClient) -> None:
    client.post("/datasets", json=RINGS)
    again = client.post("/datasets", json=RINGS)
    assert (again.status_code, again.json()["code"]) == (409, "dataset_name_taken")


@pytest.mark.parametrize(
    "change",
    [
        {"name": "  "},
        {"task": "classification"},
        {"classes": []},
        {"classes": ["a", "a"]},
        {"classes": [" "]},
        {"extra": 1},
    ],
)
def test_a_body_that_cannot_be_meant_is_refused(
    client: TestClient, change: dict[str, object]
) -> None:
    answer = client.post("/datasets", json=RINGS | change)
    assert answer.status_code == 422
    assert answer.json()["where"].startswith(f"/{next(iter(change))}")


def test_a_request_repeated_under_one_key_creates_once(client: TestClient) -> None:
    headers = {"Idempotency-Key": "k"}
    first = client.post("/datasets", json=RINGS, headers=headers)
    again = client.post("/datasets", json=RINGS, headers=headers)
    assert (again.status_code, again.json()) == (201, first.json())
    assert again.headers["Location"] == first.headers["Location"]
    assert len(client.get("/datasets").json()["items"]) == 1


def test_twins_under_one_key_at_once_create_once(client: TestClient) -> None:
    def create(_: int) -> str:
        answer = client.post("/datasets", json=RINGS, headers={"Idempotency-Key": "k"})
        assert answer.status_code == 201
        return str(answer.json()["id"])

    with ThreadPoolExecutor(6) as pool:
        assert len(set(pool.map(create, range(6)))) == 1


def test_a_key_is_not_lent_to_another_request(client: TestClient) -> None:
    headers = {"Idempotency-Key": "k"}
    client.post("/datasets", json=RINGS, headers=headers)
    other = client.post("/datasets", json=RINGS | {"name": "other"}, headers=headers)
    assert (other.status_code, other.json()["code"]) == (409, "idempotency_key_reused")


def test_a_refused_request_does_not_use_up_its_key(client: TestClient) -> None:
    client.post("/datasets", json=RINGS)
    headers = {"Idempotency-Key": "k"}
    assert client.post("/datasets", json=RINGS, headers=headers).status_code == 409
    other = client.post("/datasets", json=RINGS | {"name": "other"}, headers=headers)
    assert other.status_code == 201


def test_old_keys_are_forgotten(client: TestClient, engine: Engine) -> None:
    client.post("/datasets", json=RINGS, headers={"Idempotency-Key": "old"})
    with session_factory(engine).begin() as session:
        session.execute(update(IdempotencyRecord).values(created_at=now_utc() - 2 * KEPT_FOR))
    other = RINGS | {"name": "other"}
    client.post("/datasets", json=other, headers={"Idempotency-Key": "new"})
    with session_factory(engine, writes=False)() as session:
        assert session.get(IdempotencyRecord, "old") is None
        assert session.get(IdempotencyRecord, "new") is not None


def test_an_unknown_data_set_is_not_found(client: TestClient) -> None:
    answer = client.get("/datasets/ds_none")
    assert (answer.status_code, answer.json()["code"]) == (404, "dataset_not_found")
    assert client.get("/datasets/ds_none/items").status_code == 404
    assert client.get("/datasets/ds_none/versions").status_code == 404
