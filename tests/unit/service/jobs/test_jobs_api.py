"""``/jobs`` over HTTP: queue, look, stop, go on; each refusal says what to do."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine, update

from service.database.engine import session_factory
from service.database.tables import Job
from service.storage import Storage

Work = Callable[[str, str], dict[str, Any]]


def queued(client: TestClient, version_id: str, **wishes: Any) -> dict[str, Any]:
    response = client.post("/jobs", json={"version": version_id, **wishes})
    assert response.status_code == 201, response.text
    job: dict[str, Any] = response.json()
    assert response.headers["Location"] == f"/jobs/{job['id']}"
    return job


def test_a_new_job_waits_and_shows_every_default_it_will_train_with(
    client: TestClient, version_id: str
) -> None:
    job = queued(client, version_id, batch_size=1)
    assert job["status"] == "queued"
    assert job["spec"]["batch_size"] == 1
    assert job["spec"]["resolution"] == {"mode": "native"}
    assert job["created_at"].endswith("Z")
    assert client.get(f"/jobs/{job['id']}").json() == job


def test_the_same_idempotency_key_queues_one_job(client: TestClient, version_id: str) -> None:
    sent = [
        client.post("/jobs", json={"version": version_id}, headers={"Idempotency-Key": "once"})
        for _ in range(2)
    ]
    assert sent[0].json() == sent[1].json()
    assert len(client.get("/jobs").json()["items"]) == 1


@pytest.mark.parametrize(
    ("wish", "where"),
    [
        ({"batchsize": 2}, "/batchsize"),
        ({"resolution": {"mode": "crop", "width_px": 512}}, "/resolution/crop/height_px"),
        ({"budget": {"max_steps": -1}}, "/budget/max_steps"),
    ],
)
def test_a_wish_that_cannot_be_meant_is_refused_by_name(
    client: TestClient, version_id: str, wish: dict[str, Any], where: str
) -> None:
    response = client.post("/jobs", json={"version": version_id, **wish})
    assert response.status_code == 422
    assert response.json()["where"] == where


def test_a_job_on_an_unknown_version_is_refused_with_a_hint(client: TestClient) -> None:
    problem = client.post("/jobs", json={"version": "ver_nowhere"}).json()
    assert (problem["status"], problem["code"]) == (422, "unknown_version")
    assert "versions" in problem["hint"]


def test_jobs_are_listed_newest_first_page_by_page(client: TestClient, version_id: str) -> None:
    made = [queued(client, version_id)["id"] for _ in range(3)]
    first = client.get("/jobs", params={"limit": 2}).json()
    second = client.get("/jobs", params={"cursor": first["next_cursor"]}).json()
    listed = [job["id"] for job in first["items"] + second["items"]]
    assert listed == made[::-1]
    assert second["next_cursor"] is None


def test_jobs_are_listed_by_state(client: TestClient, version_id: str) -> None:
    stopped, waiting = queued(client, version_id)["id"], queued(client, version_id)["id"]
    client.post(f"/jobs/{stopped}:cancel")
    items = client.get("/jobs", params={"status": "queued"}).json()["items"]
    assert [job["id"] for job in items] == [waiting]


def test_cancelling_a_waiting_job_ends_it_and_a_second_time_conflicts(
    client: TestClient, version_id: str
) -> None:
    job_id = queued(client, version_id)["id"]
    assert client.post(f"/jobs/{job_id}:cancel").status_code == 202
    again = client.post(f"/jobs/{job_id}:cancel")
    assert (again.status_code, again.json()["code"]) == (409, "job_ended")
    assert client.post(f"/jobs/{job_id}:resume").json()["status"] == "queued"


def test_a_waiting_job_cannot_be_resumed(client: TestClient, version_id: str) -> None:
    job_id = queued(client, version_id)["id"]
    assert client.post(f"/jobs/{job_id}:resume").status_code == 409


@pytest.mark.parametrize(
    "path", ["", "/events", "/metrics", "/logs", "/training-frames", "/report", "/preflight"]
)
def test_an_unknown_job_is_not_found(client: TestClient, path: str) -> None:
    assert client.get(f"/jobs/job_nowhere{path}").status_code == 404


def run_of(storage: Storage, engine: Engine, job_id: str, status: str) -> Path:
    """Give a job a run directory with some events and put it in a state."""
    run_dir = storage.run_dir(job_id)
    run_dir.mkdir(parents=True)
    (run_dir / "events.jsonl").write_text(
        '{"seq": 1, "time": "2026-01-05T08:00:00Z", "kind": "started", "pid": 5}\n'
        '{"seq": 2, "time": "2026-01-05T08:00:01Z", "kind": "metrics", "step": 1, "epoch": 0,'
        ' "values": {"loss": 0.5, "dice/pit": null}}\n'
        '{"seq": 3, "time": "2026-01-05T08:00:02Z", "kind": "cancelled"}\n'
        '{"seq": 4, "time": "2026-01'
    )
    (run_dir / "log.txt").write_text("first line\nsecond line\n")
    with session_factory(engine).begin() as session:
        session.execute(update(Job).where(Job.id == job_id).values(status=status))
    return run_dir


def test_the_event_stream_of_an_ended_job_tells_all_of_it_and_ends(
    client: TestClient, storage: Storage, engine: Engine, version_id: str
) -> None:
    job_id = queued(client, version_id)["id"]
    run_of(storage, engine, job_id, "cancelled")
    stream = client.get(f"/jobs/{job_id}/events")
    assert stream.headers["content-type"].startswith("text/event-stream")
    frames = stream.text.strip().split("\n\n")
    ids = [frame.splitlines()[0] for frame in frames]
    assert ids == ["id: 1", "id: 2", "id: 3", "event: status"]
    assert frames[-1] == 'event: status\ndata: {"status":"cancelled"}'


def test_a_reader_that_lost_the_stream_goes_on_behind_its_last_event(
    client: TestClient, storage: Storage, engine: Engine, version_id: str
) -> None:
    job_id = queued(client, version_id)["id"]
    run_of(storage, engine, job_id, "cancelled")
    stream = client.get(f"/jobs/{job_id}/events", headers={"Last-Event-ID": "2"})
    assert stream.text.startswith("id: 3\n")


def test_metrics_are_listed_with_their_place(
    client: TestClient, storage: Storage, engine: Engine, version_id: str
) -> None:
    job_id = queued(client, version_id)["id"]
    run_of(storage, engine, job_id, "running")
    (record,) = client.get(f"/jobs/{job_id}/metrics").json()["items"]
    assert (record["seq"], record["step"]) == (2, 1)
    assert record["values"] == {"loss": 0.5, "dice/pit": None}
    assert client.get(f"/jobs/{job_id}/metrics", params={"after": 2}).json()["items"] == []


def test_what_training_sees_is_a_picture_once_it_was_drawn(
    client: TestClient, version_id: str, storage: Storage
) -> None:
    job_id = queued(client, version_id)["id"]
    missing = client.get(f"/jobs/{job_id}/training-frames")
    assert (missing.status_code, missing.json()["code"]) == (404, "training_frames_not_drawn")
    assert missing.json()["hint"]
    sheet = storage.run_dir(job_id) / "training_frames.png"
    sheet.parent.mkdir(parents=True, exist_ok=True)
    sheet.write_bytes(b"picture")
    found = client.get(f"/jobs/{job_id}/training-frames")
    assert (found.headers["content-type"], found.content) == ("image/png", b"picture")


def test_preflight_is_told_with_every_step_down_since(
    client: TestClient, storage: Storage, engine: Engine, version_id: str
) -> None:
    job_id = queued(client, version_id)["id"]
    missing = client.get(f"/jobs/{job_id}/preflight")
    assert (missing.status_code, missing.json()["code"]) == (404, "preflight_not_made")
    rung = {"rung": "accumulation", "because": "memory ran out", "consequence": "…", "step": 4}
    preflight = {
        "fits": True,
        "estimate": {
            "peak_bytes": 5,
            "phase_bytes": {"training_step": 5},
            "step_s": [1.0, 2.0],
            "training_s": [10.0, 20.0],
            "steps": 10,
        },
        "limit": {"limit_bytes": 9, "source": "memory.limit_bytes"},
        "headroom": 1.1,
        "rungs": [],
        "rungs_without_effect": [],
    }
    events = [{"kind": "preflight", **preflight}, {"kind": "memory_step_down", **rung}]
    run_dir = run_of(storage, engine, job_id, "running")
    (run_dir / "events.jsonl").write_text(
        "".join(json.dumps({"seq": seq, **event}) + "\n" for seq, event in enumerate(events, 1))
    )
    told = client.get(f"/jobs/{job_id}/preflight").json()
    assert told == {**preflight, "rungs": [{**rung, "time": None}]}


def test_a_report_is_json_for_programs_and_a_page_for_people(
    client: TestClient, version_id: str, storage: Storage
) -> None:
    job_id = queued(client, version_id)["id"]
    path = f"/jobs/{job_id}/report"
    for form in ("json", "html"):
        missing = client.get(path, params={"format": form})
        assert (missing.status_code, missing.json()["code"]) == (404, "report_not_written")
    run_dir = storage.run_dir(job_id)
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "report.json").write_text('{"statements": ["Escape"]}')
    old = client.get(path, params={"format": "html"})
    assert (old.status_code, old.json()["code"]) == (404, "report_page_not_written")
    (run_dir / "report.html").write_text("<p>Grübchen: 0 of 12</p>", encoding="utf-8")

    assert client.get(path).json() == {"statements": ["Escape"]}
    for page in (
        client.get(path, params={"format": "html"}),
        client.get(path, headers={"Accept": "text/html,*/*;q=0.8"}),
    ):
        assert page.headers["content-type"].startswith("text/html")
        assert page.text == "<p>Grübchen: 0 of 12</p>"
        # A browser is to run and load nothing, whatever a class is called.
        assert page.headers["content-security-policy"].startswith("default-src 'none'")


def test_the_end_of_the_log_begins_with_a_whole_line(
    client: TestClient, storage: Storage, engine: Engine, version_id: str
) -> None:
    job_id = queued(client, version_id)["id"]
    run_of(storage, engine, job_id, "running")
    assert client.get(f"/jobs/{job_id}/logs").text == "first line\nsecond line\n"
    tail = client.get(f"/jobs/{job_id}/logs", params={"max_bytes": 15})
    assert tail.text == "second line\n"
