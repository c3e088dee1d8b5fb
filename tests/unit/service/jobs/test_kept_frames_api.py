"""Frames of the line that are kept for relabelling: which, how many, and where they go."""

import hashlib
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import update

from models import (
    BundleInfo,
    ClassThreshold,
    FrozenModel,
    OperatingPoint,
    load_bundle,
    write_bundle,
)
from service.database.tables import KeptFrame, now_utc
from service.serving.deployment_resources import UncertainWish
from service.serving.kept_frames import is_uncertain
from service.storage import Storage

AddModel = Callable[..., str]
WIDTH, HEIGHT = 96, 64


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)
    done, encoded = cv2.imencode(".png", pixels)
    assert done
    return bytes(encoded)


def predict(client: TestClient, raw: bytes, **options: Any) -> Any:
    answer = client.post("/predict", files={"file": ("a.png", raw)}, **options)
    assert answer.status_code == 200
    return answer.json()


def settle(client: TestClient) -> None:
    assert isinstance(client.app, FastAPI)
    client.app.state.follow_up.wait()


def frames(client: TestClient, query: str = "") -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = client.get(f"/deployments/default/frames{query}").json()["items"]
    return items


def files(storage: Storage) -> set[str]:
    return {path.name for path in (storage.root / "kept").rglob("*") if path.is_file()}


def keep(client: TestClient, **wish: Any) -> None:
    assert client.put("/deployments/default/keep", json=wish).status_code == 200


@pytest.fixture
def calm(add_model: AddModel, bundle: Path, tmp_path: Path) -> Callable[..., str]:
    """Add a model with one threshold for all classes."""

    def add(name: str, threshold: float) -> str:
        whole = load_bundle(bundle)
        point = OperatingPoint(
            classes={each: ClassThreshold(threshold=threshold) for each in whole.info.classes}
        )
        info = whole.info.model_copy(update={"operating_point": point})
        write_bundle(tmp_path / name, info, whole.network.state_dict())
        return add_model(name, tmp_path / name)

    return add


def test_nothing_is_kept_unless_it_is_asked_for(
    client: TestClient, served: str, storage: Storage
) -> None:
    predict(client, png(1))
    settle(client)
    assert frames(client) == []
    assert files(storage) == set()
    assert client.get("/deployments/default/keep").json()["keep"] is None


def test_ng_frames_are_kept_byte_for_byte_with_the_answers_they_got(
    client: TestClient, served: str
) -> None:
    keep(client, ng=True, by="A. Berg", reason="new lot")
    raw = png(1)
    answer = predict(client, raw)
    assert answer["verdict"] == "NG"
    settle(client)

    (kept,) = frames(client)
    assert (kept["cause"], kept["width"], kept["height"]) == ("ng", WIDTH, HEIGHT)
    assert kept["file_sha256"] == kept["image_sha256"] == hashlib.sha256(raw).hexdigest()
    for name in ("verdict", "defects", "model", "ledger_sequence", "request_id"):
        assert kept["answer"][name] == answer[name]
    assert "pictures" not in kept["answer"]
    picture = client.get(kept["image"])
    assert (picture.content, picture.headers["content-type"]) == (raw, "image/png")
    told = client.get("/deployments/default/keep").json()
    assert (told["frames"], told["bytes"], told["not_kept"]) == (1, len(raw), 0)
    newest = client.get("/deployments/default/history").json()["items"][0]
    assert (newest["kind"], newest["by"]) == ("keeping_changed", "A. Berg")


def test_a_frame_without_a_deployment_or_past_its_deadline_is_not_kept(
    client: TestClient, served: str
) -> None:
    keep(client, ng=True)
    predict(client, png(1), params={"model": served})
    predict(client, png(2), params={"deadline_ms": 0.001})
    settle(client)
    assert frames(client) == []


def test_a_buffer_is_kept_as_a_picture_of_the_same_pixels(client: TestClient, served: str) -> None:
    keep(client, ng=True)
    pixels = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)
    headers = {
        "Content-Type": "application/octet-stream",
        "X-Width": str(WIDTH),
        "X-Height": str(HEIGHT),
        "X-Pixel-Format": "Mono8",
    }
    assert client.post("/predict", content=pixels.tobytes(), headers=headers).status_code == 200
    settle(client)
    (kept,) = frames(client)
    assert kept["image_sha256"] == hashlib.sha256(pixels.tobytes()).hexdigest()
    assert kept["file_sha256"] != kept["image_sha256"]
    stored = np.frombuffer(client.get(kept["image"]).content, np.uint8)
    np.testing.assert_array_equal(cv2.imdecode(stored, cv2.IMREAD_UNCHANGED), pixels)


def test_the_oldest_frames_go_beyond_the_bytes_that_were_granted(
    client: TestClient, served: str, storage: Storage
) -> None:
    pictures = [png(seed) for seed in range(4)]
    keep(client, ng=True, max_bytes=len(pictures[2]) + len(pictures[3]) + 1)
    for raw in pictures:
        predict(client, raw)
        settle(client)
    expected = [hashlib.sha256(raw).hexdigest() for raw in (pictures[3], pictures[2])]
    assert [kept["file_sha256"] for kept in frames(client)] == expected
    assert files(storage) == {*expected}


def test_a_file_stays_as_long_as_one_frame_names_it(
    client: TestClient, served: str, storage: Storage
) -> None:
    raw = png(1)
    keep(client, ng=True, max_bytes=len(raw))
    for _ in range(3):
        predict(client, raw)
        settle(client)
    assert len(frames(client)) == 1
    assert len(files(storage)) == 1


def test_frames_go_when_they_have_grown_too_old(
    client: TestClient, served: str, storage: Storage
) -> None:
    keep(client, ng=True, max_age_days=2)
    predict(client, png(1))
    settle(client)
    assert isinstance(client.app, FastAPI)
    state = client.app.state
    with state.write_sessions.begin() as session:
        session.execute(update(KeptFrame).values(kept_at=now_utc() - timedelta(days=3)))
    state.follow_up.keeper.prune_all()
    assert frames(client) == []
    assert files(storage) == set()


def test_uncertain_frames_are_those_near_the_threshold_on_either_side(
    bundle: Path, calm: Callable[..., str], client: TestClient
) -> None:
    raw = png(1)
    pixels: Any = cv2.imdecode(np.frombuffer(raw, np.uint8), cv2.IMREAD_UNCHANGED)
    peak = float(FrozenModel(load_bundle(bundle), "cpu").probabilities(pixels).max())
    wanted = {}
    for name, threshold in (
        ("farbelow", peak - 0.2),
        ("below", peak - 0.02),
        ("above", min(peak + 0.02, 0.99999)),
    ):
        client.put("/deployments/default", json={"model": calm(name, threshold)})
        keep(client, ng=False, uncertain={"margin": 0.05})
        answer = predict(client, raw)
        settle(client)
        newest = frames(client)
        wanted[name] = (answer["verdict"], len(newest))
    assert wanted["farbelow"] == ("NG", 0)
    assert wanted["below"] == ("NG", 1)
    assert wanted["above"][1] == 2
    assert {kept["cause"] for kept in frames(client)} == {"uncertain"}


def described(threshold: float, bundle: Path) -> BundleInfo:
    info = load_bundle(bundle).info
    point = OperatingPoint(
        classes={each: ClassThreshold(threshold=threshold) for each in info.classes}
    )
    return info.model_copy(update={"operating_point": point})


def test_a_calm_ok_is_not_uncertain(bundle: Path) -> None:
    model = FrozenModel(load_bundle(bundle), "cpu")
    pixels = np.full((HEIGHT, WIDTH), 120, np.uint8)
    peak = float(model.probabilities(pixels).max())
    model.info = described(min(peak + 0.2, 0.999), bundle)
    inspection = model.inspect(pixels)
    assert inspection.verdict == "OK"
    assert not is_uncertain(UncertainWish(margin=0.05), inspection, model.info)
    assert is_uncertain(UncertainWish(margin=0.3), inspection, model.info)


def test_kept_frames_join_a_data_set_once_each_and_wait_for_labels(
    client: TestClient, served: str
) -> None:
    keep(client, ng=True)
    for raw in (png(1), png(2), png(1)):
        predict(client, raw)
        settle(client)
    dataset = client.post("/datasets", json={"name": "line", "task": "segmentation"}).json()["id"]
    url = f"/datasets/{dataset}/images:from-kept"

    taken = client.post(url, json={"deployment": "default", "cause": "ng"})

    assert (taken.status_code, taken.json()["counts"]) == (201, {"accepted": 2})
    assert client.get(f"/datasets/{dataset}").json()["counts"]["unlabelled"] == 2
    again = client.post(url, json={"deployment": "default", "frames": [frames(client)[0]["id"]]})
    assert again.json()["counts"] == {"known": 1}
    unknown = client.post(url, json={"deployment": "default", "frames": [99]})
    assert (unknown.status_code, unknown.json()["where"]) == (422, "/frames")
    both = client.post(url, json={"deployment": "default", "frames": [1], "cause": "ng"})
    assert both.status_code == 422


def test_frames_are_kept_no_more_when_it_is_taken_back(client: TestClient, served: str) -> None:
    keep(client, ng=True)
    assert client.delete("/deployments/default/keep").json()["keep"] is None
    predict(client, png(1))
    settle(client)
    assert frames(client) == []
    refused = client.put("/deployments/default/keep", json={"ng": False})
    assert refused.status_code == 422
    assert client.get("/deployments/default/frames/7/image").status_code == 404
