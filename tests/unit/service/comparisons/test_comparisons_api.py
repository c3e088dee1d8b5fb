"""``/comparisons`` over HTTP: jobs that anybody can watch, and one answer about them."""

from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine, update

from service.database.engine import session_factory
from service.database.tables import Dataset, Job, Version
from service.storage import Storage
from tests.unit.service.comparisons.arms import FOUND, leave_behind


@pytest.fixture
def version_id(engine: Engine) -> str:
    with session_factory(engine).begin() as session:
        session.add(Dataset(id="ds_1", name="rings", task="segmentation", classes=["pit"]))
        session.flush()
        session.add(
            Version(
                id="ver_1",
                dataset_id="ds_1",
                digest="0" * 64,
                classes=["pit"],
                split={},
                statistics={"sizes": {"2500x2000": 40}},
            )
        )
    return "ver_1"


def asked(client: TestClient, version_id: str, **wishes: Any) -> dict[str, Any]:
    response = client.post("/comparisons", json={"job": {"version": version_id}, **wishes})
    assert response.status_code == 201, response.text
    made: dict[str, Any] = response.json()
    assert response.headers["Location"] == f"/comparisons/{made['id']}"
    return made


def test_each_arm_is_a_job_like_any_other_in_the_order_asked(
    client: TestClient, version_id: str
) -> None:
    made = asked(client, version_id, arms=["half", "native"])
    assert [arm["name"] for arm in made["arms"]] == ["half", "native"]
    jobs = client.get("/jobs").json()["items"][::-1]
    assert [job["id"] for job in jobs] == [arm["job"] for arm in made["arms"]]
    assert {job["comparison"] for job in jobs} == {made["id"]}
    assert jobs[0]["spec"]["resolution"] == {"mode": "resized", "factor": 0.5}
    assert client.get(f"/comparisons/{made['id']}").json() == made
    assert (made["findings"], made["pairs"], made["has_ended"]) == ([], [], False)
    alone = client.post("/jobs", json={"version": version_id}).json()
    assert alone["comparison"] is None


def test_the_same_idempotency_key_makes_one_comparison(client: TestClient, version_id: str) -> None:
    body, key = {"job": {"version": version_id}}, {"Idempotency-Key": "once"}
    first, second = (client.post("/comparisons", json=body, headers=key).json() for _ in range(2))
    assert first == second
    assert len(client.get("/jobs").json()["items"]) == 4


def test_finished_arms_are_set_side_by_side_as_json_and_as_a_page(
    client: TestClient, version_id: str, engine: Engine, storage: Storage
) -> None:
    made = asked(client, version_id)
    for arm in made["arms"]:
        leave_behind(storage.run_dir(arm["job"]), arm["name"])
    with session_factory(engine).begin() as session:
        session.execute(update(Job).values(status="succeeded", model_id="mdl_<b>"))
    address = f"/comparisons/{made['id']}"
    found = client.get(address).json()
    assert found["has_ended"]
    assert [arm["result"]["recall"]["events"] for arm in found["arms"]] == [
        sum(counts) for counts in FOUND.values()
    ]
    assert found["findings"][0].startswith("half is worse")
    page = client.get(address, headers={"Accept": "text/html,*/*"})
    assert page.headers["content-type"].startswith("text/html")
    assert page.headers["Vary"] == "Accept"
    for sentence in (
        "native finds 12 of 20 defects under 10 px, half 4 of 20",
        "12 of 20 (36 to 81 %)",
        "pit: 2 of 90 vanish, 1 run together",
        "mdl_&lt;b&gt;",
        # Tiles find what whole frames find.
        "none: no unit differs",
    ):
        assert sentence in page.text, sentence
    assert "http-equiv" not in page.text
    assert client.get(f"{address}?format=json").json() == found


def test_a_failed_arm_says_why_and_the_others_are_compared_all_the_same(
    client: TestClient, version_id: str, engine: Engine, storage: Storage
) -> None:
    made = asked(client, version_id, arms=["native", "half", "quarter"])
    native, half, quarter = (arm["job"] for arm in made["arms"])
    error = {"code": "out_of_memory", "detail": "the device has no memory", "hint": "use crops"}
    with session_factory(engine).begin() as session:
        for job, arm in ((native, "native"), (quarter, "quarter")):
            leave_behind(storage.run_dir(job), arm)
            session.execute(update(Job).where(Job.id == job).values(status="succeeded"))
        session.execute(update(Job).where(Job.id == half).values(status="failed", error=error))
    found = client.get(f"/comparisons/{made['id']}").json()
    assert found["has_ended"]
    assert found["arms"][1]["error"] == error
    assert {pair["arm"] for pair in found["pairs"]} == {"quarter"}
    assert "the device has no memory" in client.get(f"/comparisons/{made['id']}?format=html").text


def test_lost_files_of_a_finished_arm_are_the_services_fault_and_named(
    client: TestClient, version_id: str, engine: Engine
) -> None:
    made = asked(client, version_id)
    with session_factory(engine).begin() as session:
        session.execute(update(Job).values(status="succeeded"))
    answer = client.get(f"/comparisons/{made['id']}")
    assert (answer.status_code, answer.json()["code"]) == (507, "outcomes_damaged")


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({"job": {"version": "ver_nowhere"}}, "/job/version"),
        ({"job": {"version": "ver_1", "batchsize": 1}}, "/job/batchsize"),
        ({"job": {"version": "ver_1"}, "equal": "frames"}, "/equal"),
        ({"job": {"version": "ver_1"}, "equal": "minutes"}, "/job/budget/max_minutes"),
    ],
)
def test_a_wish_that_cannot_be_meant_is_refused_by_name(
    client: TestClient, version_id: str, body: dict[str, Any], where: str
) -> None:
    response = client.post("/comparisons", json=body)
    assert response.status_code == 422, response.text
    assert response.json()["where"] == where
    assert client.get("/jobs").json()["items"] == []


@pytest.mark.parametrize("name", ["cmp_nowhere", "job_1", "x"])
def test_an_unknown_comparison_is_not_found(client: TestClient, name: str) -> None:
    answer = client.get(f"/comparisons/{name}")
    assert (answer.status_code, answer.json()["code"]) == (404, "comparison_not_found")
