"""A model beside the served one: it sees the line's frames, and never slows the line."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

import cv2
import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from models import (
    ClassThreshold,
    FrozenModel,
    OperatingPoint,
    freeze_bundle,
    load_bundle,
    write_bundle,
)
from models.certificate import exact_interval
from service.serving.shadow import ShadowComparison
from service.serving.shadow_process import ShadowFailed, ShadowProcess
from service.serving.uploaded_frame import UploadedFrame
from service.settings import Settings
from service.storage import Storage

AddModel = Callable[..., str]
WIDTH, HEIGHT = 96, 64


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    # The tests' machine may be busy, and a process that gives way to everything would wait for it.
    return Settings(storage_dir=tmp_path / "storage", device="cpu", shadow_niceness=0)


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)
    done, encoded = cv2.imencode(".png", pixels)
    assert done
    return bytes(encoded)


def predict(client: TestClient, raw: bytes) -> Any:
    answer = client.post("/predict", files={"file": ("a.png", raw)})
    assert answer.status_code == 200
    return answer.json()


def comparison(client: TestClient) -> ShadowComparison:
    assert isinstance(client.app, FastAPI)
    shadow: ShadowComparison = client.app.state.follow_up.shadow
    return shadow


def shadow_of(client: TestClient) -> Any:
    comparison(client).wait()
    return client.get("/deployments/default/shadow").json()


def begin(client: TestClient, model: str, **wish: Any) -> None:
    answer = client.put("/deployments/default/shadow", json={"model": model, **wish})
    assert answer.status_code == 200, answer.json()


@pytest.fixture
def blind(add_model: AddModel, bundle: Path, tmp_path: Path) -> str:
    """A model that finds nothing."""
    whole = load_bundle(bundle)
    point = OperatingPoint(
        classes={
            each: ClassThreshold(min_area_px=WIDTH * HEIGHT + 1) for each in whole.info.classes
        }
    )
    info = whole.info.model_copy(update={"operating_point": point})
    write_bundle(tmp_path / "blind", info, whole.network.state_dict())
    return add_model("blind", tmp_path / "blind")


@pytest.fixture
def in_process(client: TestClient, storage: Storage) -> None:
    """Ask models in this process: starting another one takes seconds."""
    loaded: dict[str, Any] = {}

    def ask(model_id: str, frame: UploadedFrame) -> dict[str, Any]:
        if model_id not in loaded:
            loaded[model_id] = freeze_bundle(load_bundle(storage.bundle_dir(model_id)), "cpu")
        inspection = loaded[model_id].inspect(frame.decode(None).pixels)
        return {
            "verdict": inspection.verdict,
            "defects": [
                {"class": defect.class_name, "box": list(defect.box), "score": defect.score}
                for defect in inspection.defects
            ],
        }

    comparison(client)._ask = ask


@pytest.mark.slow
def test_a_shadow_runs_in_a_process_of_its_own_whose_death_the_line_does_not_notice(
    client: TestClient, served: str, add_model: AddModel, blind: str, bundle: Path
) -> None:
    begin(client, add_model("twin"))
    answer = predict(client, png(1))
    told = shadow_of(client)
    (count,) = told["counts"]
    assert told["last_error"] is None
    assert (count["served_model"], count["compared"], count["agreed"]["rate"]) == (served, 1, 1.0)

    begin(client, blind)
    assert predict(client, png(2))["verdict"] == "NG"
    (count,) = shadow_of(client)["counts"]
    assert count["same_verdict"] == exact_interval(0, 1)
    (kept,) = client.get("/deployments/default/shadow/disagreements").json()["items"]
    assert (kept["answer"]["verdict"], kept["shadow_answer"]["verdict"]) == ("NG", "OK")

    process = comparison(client)._ask.__self__  # type: ignore[attr-defined]  # The process's method.
    assert isinstance(process, ShadowProcess)
    assert process._process is not None
    os.kill(process._process.pid, signal.SIGKILL)
    process._process.wait()
    process._start_at_s = float("inf")
    assert predict(client, png(1))["defects"] == answer["defects"]
    told = shadow_of(client)
    assert told["counts"][0]["failed"] == 1
    assert "not started again so soon" in told["last_error"]


def test_agreement_is_counted_for_each_served_model_with_its_interval(
    client: TestClient, served: str, add_model: AddModel, blind: str, in_process: None
) -> None:
    begin(client, blind)
    for seed in range(3):
        predict(client, png(seed))
        comparison(client).wait()
    client.put("/deployments/default", json={"model": add_model("other")})
    predict(client, png(3))

    counts = {each["served_model"]: each for each in shadow_of(client)["counts"]}

    assert counts[served]["same_verdict"] == exact_interval(0, 3)
    assert counts["mdl_other"]["same_verdict"] == exact_interval(0, 1)
    assert client.get("/deployments/default").json()["shadow"] == blind


def test_disagreements_are_listed_with_both_answers_and_the_picture_and_the_oldest_go(
    client: TestClient, served: str, blind: str, in_process: None
) -> None:
    begin(client, blind, max_frames=2)
    pictures = [png(seed) for seed in range(4)]
    for raw in pictures:
        predict(client, raw)
        comparison(client).wait()
    url = "/deployments/default/shadow/disagreements"
    newest, older = client.get(url).json()["items"]
    assert client.get(newest["image"]).content == pictures[3]
    assert client.get(older["image"]).content == pictures[2]
    assert newest["answer"]["model"]["id"] == served
    assert newest["shadow_answer"] == {"verdict": "OK", "defects": []}
    page = client.get(f"{url}?limit=1").json()
    assert client.get(f"{url}?cursor={page['next_cursor']}").json()["items"] == [older]
    assert shadow_of(client)["disagreements"] == 2
    # Disagreements are no frames for relabelling unless they are asked for.
    assert client.get("/deployments/default/frames").json()["items"] == []
    listed = client.get("/deployments/default/frames?cause=disagreement").json()["items"]
    assert listed == [newest, older]


def test_the_line_is_answered_while_the_shadow_is_stuck_and_what_it_misses_is_counted(
    client: TestClient, served: str, blind: str
) -> None:
    may_go_on, began = Event(), Event()

    def stuck(model_id: str, frame: UploadedFrame) -> dict[str, Any]:
        began.set()
        assert may_go_on.wait(60)
        return {"verdict": "OK", "defects": []}

    comparison(client)._ask = stuck
    begin(client, blind)
    predict(client, png(0))
    assert began.wait(30)
    # One is in hand and four wait; the line gets all of its answers all the same.
    for seed in range(1, 10):
        assert predict(client, png(seed))["verdict"] == "NG"
    may_go_on.set()
    (count,) = shadow_of(client)["counts"]
    assert (count["compared"], count["dropped"]) == (5, 5)


def test_a_frame_is_dropped_where_the_line_leaves_the_device_no_rest(
    client: TestClient,
    served: str,
    blind: str,
    in_process: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.serving.shadow._PATIENCE_S", 0.05)
    begin(client, blind)
    assert isinstance(client.app, FastAPI)
    queue = client.app.state.inference.queue
    # A frame that has a place keeps the line busy from before it is decoded.
    (place,) = queue.admit(served, "camera", None)
    predict(client, png(1))
    told = shadow_of(client)
    queue.leave(place)
    assert (told["counts"][0]["compared"], told["counts"][0]["dropped"]) == (0, 1)
    predict(client, png(1))
    assert shadow_of(client)["counts"][0]["compared"] == 1


def test_a_sample_holds_its_share_and_the_same_picture_is_always_in_or_out(
    client: TestClient, served: str, blind: str, in_process: None
) -> None:
    begin(client, blind, sample_rate=0.5)
    for _ in range(2):
        for seed in range(6):
            predict(client, png(seed))
            comparison(client).wait()
    compared = shadow_of(client)["counts"][0]["compared"]
    assert 0 < compared < 12
    assert compared % 2 == 0


def test_a_shadow_comes_and_goes_in_the_history_and_what_it_found_stays(
    client: TestClient, served: str, blind: str, in_process: None
) -> None:
    begin(client, blind, by="A. Berg", reason="trial")
    begin(client, blind)
    predict(client, png(1))
    comparison(client).wait()
    gone = client.delete("/deployments/default/shadow").json()
    assert (gone["model"], gone["shadow"]) == (served, None)
    predict(client, png(2))
    told = shadow_of(client)
    assert told["ended_at"] is not None
    assert told["counts"][0]["compared"] == 1
    again = client.delete("/deployments/default/shadow")
    assert (again.status_code, again.json()["code"]) == (409, "no_shadow")
    events = client.get("/deployments/default/history").json()["items"]
    assert [event["kind"] for event in events] == ["shadow_off", "shadow_on", "created"]
    assert (events[1]["by"], events[1]["details"]["shadow"]["model"]) == ("A. Berg", blind)


def test_a_shadow_that_does_not_suit_the_frames_fails_and_says_why(
    client: TestClient, served: str, add_model: AddModel, bayer_bundle: Path, storage: Storage
) -> None:
    model = add_model("raw", bayer_bundle)
    runtime = FrozenModel(load_bundle(storage.bundle_dir(model)), "cpu")

    def ask(_: str, frame: UploadedFrame) -> dict[str, Any]:
        try:
            runtime.inspect(frame.decode(None).pixels)
        except Exception as error:
            raise ShadowFailed(str(error)) from error
        raise AssertionError("a frame of 8 bits suits no model of 16")

    comparison(client)._ask = ask
    begin(client, model)
    predict(client, png(1))
    told = shadow_of(client)
    assert (told["counts"][0]["failed"], told["counts"][0]["compared"]) == (1, 0)
    assert "bit" in told["last_error"]


def test_only_a_known_model_can_run_beside_a_known_deployment(
    client: TestClient, served: str, blind: str
) -> None:
    unknown = client.put("/deployments/default/shadow", json={"model": "mdl_nowhere"})
    assert (unknown.status_code, unknown.json()["where"]) == (422, "/model")
    assert client.put("/deployments/line-9/shadow", json={"model": blind}).status_code == 404
    assert client.get("/deployments/default/shadow").json()["code"] == "no_shadow"
