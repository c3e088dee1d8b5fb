"""Models, deployments and ``/predict`` over HTTP, with a real network behind them."""

import base64
import hashlib
import io
import tarfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from fastapi import FastAPI
from fastapi.testclient import TestClient
from pycocotools import mask as coco

from models import FrozenModel, load_bundle, write_bundle
from service.api.app import create_app
from service.settings import Settings
from service.storage import Storage
from tests.oracles.bayer import demosaiced, mosaic_of

WIDTH, HEIGHT = 96, 64


def png(pixels: Any) -> bytes:
    done, encoded = cv2.imencode(".png", pixels)
    assert done
    return bytes(encoded)


@pytest.fixture
def pixels() -> Any:
    return np.random.default_rng(3).integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)


def test_the_verdict_is_that_of_the_bundle_on_disk(
    client: TestClient, served: str, bundle: Path, pixels: Any
) -> None:
    raw = png(pixels)
    answer = client.post("/predict", files={"file": ("a.png", raw)}).json()
    expected = FrozenModel(load_bundle(bundle), "cpu").inspect(pixels)
    assert answer["verdict"] == expected.verdict == "NG"
    assert [defect["class"] for defect in answer["defects"]] == [
        defect.class_name for defect in expected.defects
    ]
    assert [tuple(defect["box"]) for defect in answer["defects"]] == [
        defect.box for defect in expected.defects
    ]
    assert answer["image"] == {
        "name": "a.png",
        "width": WIDTH,
        "height": HEIGHT,
        "sha256": hashlib.sha256(raw).hexdigest(),
    }
    assert answer["model"]["id"] == served
    assert answer["model"]["deployment"] == "default"
    assert answer["model"]["operating_point"]["classes"]["pit"]["threshold"] == 0.01
    assert {"decode", "queue", "model", "postprocess", "total"} <= answer["timings_ms"].keys()
    assert answer["request_id"].startswith("req_")


def test_a_raw_body_is_inspected_like_a_multipart_file(
    client: TestClient, served: str, pixels: Any
) -> None:
    raw = png(pixels)
    multipart = client.post("/predict", files={"file": ("a.png", raw)}).json()
    body = client.post("/predict", content=raw, headers={"Content-Type": "image/png"}).json()
    assert body["defects"] == multipart["defects"]


def test_a_webp_body_is_answered_like_the_png_of_the_same_pixels(
    client: TestClient, served: str, pixels: Any
) -> None:
    colour = np.repeat(pixels[:, :, None], 3, axis=2)
    # From quality 101 on OpenCV writes WebP without loss.
    done, encoded = cv2.imencode(".webp", colour, [cv2.IMWRITE_WEBP_QUALITY, 101])
    assert done
    # WebP is always in colour, which this mono model refuses, once the frame has been decoded.
    answers = [
        client.post("/predict", content=raw, headers={"Content-Type": kind}).json()
        for raw, kind in ((bytes(encoded), "image/webp"), (png(colour), "image/png"))
    ]
    assert answers[0]["code"] == answers[1]["code"] != "unsupported_media_type"
    assert answers[0]["detail"] == answers[1]["detail"]


def test_pictures_come_at_the_size_of_the_frame_and_only_when_asked(
    client: TestClient, served: str, pixels: Any
) -> None:
    files = {"file": ("a.png", png(pixels))}
    assert client.post("/predict", files=files).json()["pictures"] == {}
    answer = client.post("/predict?include=mask,overlay,heatmap,probabilities", files=files).json()
    shapes = {}
    for name, text in answer["pictures"].items():
        raw = np.frombuffer(base64.b64decode(text), np.uint8)
        picture = cv2.imdecode(raw, cv2.IMREAD_UNCHANGED)
        assert picture is not None
        shapes[name] = (*picture.shape, picture.dtype)
    assert shapes == {
        "mask": (HEIGHT, WIDTH, np.uint8),
        "overlay": (HEIGHT, WIDTH, 3, np.uint8),
        "heatmap": (HEIGHT, WIDTH, 3, np.uint8),
        "probabilities/pit": (HEIGHT, WIDTH, np.uint16),
        "probabilities/scratch": (HEIGHT, WIDTH, np.uint16),
    }


def test_a_restarted_service_has_its_models_loaded_when_it_says_so(
    settings: Settings, client: TestClient, served: str, add_model: Callable[..., str]
) -> None:
    damaged = add_model("b")
    assert client.put("/deployments/line-2", json={"model": damaged}).status_code == 201
    (Storage(settings.storage_dir).bundle_dir(damaged) / "weights.safetensors").write_bytes(b"")
    with TestClient(create_app(settings)) as restarted:
        end_s = time.monotonic() + 60
        while restarted.get("/readyz").json()["code"] == "models_loading":
            assert time.monotonic() < end_s
        assert isinstance(restarted.app, FastAPI)
        assert [*restarted.app.state.inference._warm] == [served]
        # Only the worker is missing, and not for ever the model that can't be loaded.
        assert restarted.get("/readyz").json()["code"] == "no_worker"


def test_training_on_the_machine_is_told_of_each_frame(
    client: TestClient, served: str, storage: Storage, pixels: Any
) -> None:
    assert not storage.serving_mark.exists()
    client.post("/predict", files={"file": ("a.png", png(pixels))})
    assert time.time() - storage.serving_mark.stat().st_mtime < 60


# pycocotools has not followed numpy 2 in what it hands out.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_run_lengths_hold_the_mask_of_the_picture(
    client: TestClient, served: str, pixels: Any
) -> None:
    files = {"file": ("a.png", png(pixels))}
    answer = client.post("/predict?include=mask,rle", files=files).json()
    mask = cv2.imdecode(
        np.frombuffer(base64.b64decode(answer["pictures"]["mask"]), np.uint8), cv2.IMREAD_UNCHANGED
    )
    assert mask is not None
    assert mask.any()
    for number, name in enumerate(("pit", "scratch"), start=1):
        decoded = coco.decode(answer["masks"][name])
        np.testing.assert_array_equal(decoded.astype(bool), mask == number)
    assert client.post("/predict", files=files).json()["masks"] is None


def test_two_files_are_not_taken_for_one_frame(
    client: TestClient, served: str, pixels: Any
) -> None:
    files = [("file", ("a.png", png(pixels))), ("file", ("b.png", png(pixels)))]
    response = client.post("/predict", files=files)
    assert (response.status_code, response.json()["code"]) == (422, "several_frames")
    assert "/predict/part" in response.json()["hint"]


def test_a_frame_past_its_deadline_is_not_inspected_and_never_ok(
    client: TestClient, served: str, pixels: Any
) -> None:
    files = {"file": ("a.png", png(pixels))}
    answer = client.post("/predict?deadline_ms=0.001", files=files).json()
    assert answer["verdict"] == "NOT_INSPECTED"
    assert "deadline" in answer["warnings"][-1]


@pytest.mark.parametrize(
    ("request_options", "status", "code"),
    [
        ({"files": {"file": ("a.jpg", b"\xff\xd8\xff\xe0 cut off")}}, 422, None),
        ({"files": {"picture": ("a.png", b"x")}}, 422, "missing_file"),
        ({"content": b"x", "headers": {"Content-Type": "text/plain"}}, 422, None),
        ({"params": {"deployment": "line-9"}}, 404, "deployment_not_found"),
        ({"params": {"model": "mdl_nowhere"}}, 404, "model_not_found"),
        ({"params": {"model": "mdl_a", "deployment": "default"}}, 422, "ambiguous_model"),
        ({"params": {"include": "mask,xray"}}, 422, "unknown_picture"),
        ({"params": {"deadline_ms": 0}}, 422, "invalid_request"),
    ],
)
def test_what_cannot_be_inspected_is_refused_with_a_remedy(
    client: TestClient,
    served: str,
    request_options: dict[str, Any],
    status: int,
    code: str | None,
) -> None:
    response = client.post("/predict", **request_options)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert code is None or problem["code"] == code
    assert problem["hint"]


def test_a_frame_the_model_was_not_trained_for_is_refused(
    client: TestClient, served: str, pixels: Any
) -> None:
    deep = png(pixels.astype(np.uint16) * 257)
    problem = client.post("/predict", files={"file": ("a.png", deep)}).json()
    assert (problem["status"], problem["code"]) == (422, "bit_depth_mismatch")


def test_a_raw_bayer_frame_is_demosaiced_as_its_model_was_taught(
    client: TestClient, add_model: Callable[..., str], bayer_bundle: Path
) -> None:
    model = add_model("raw", bayer_bundle)
    seen = np.random.default_rng(5).integers(0, 2**16, (HEIGHT, WIDTH, 3), dtype=np.uint16)
    mosaic = mosaic_of(seen, "GBRG")
    answer = client.post(
        f"/predict?model={model}&include=probabilities,overlay",
        files={"file": ("a.png", png(mosaic))},
    ).json()
    assert answer["warnings"][0] == "Bayer GBRG demosaiced"
    assert "mono frame repeated in the model's three channels" not in answer["warnings"]

    def picture(name: str) -> Any:
        raw = np.frombuffer(base64.b64decode(answer["pictures"][name]), np.uint8)
        return cv2.imdecode(raw, cv2.IMREAD_UNCHANGED)

    expected = FrozenModel(load_bundle(bayer_bundle), "cpu").inspect(demosaiced(mosaic, "GBRG"))
    assert expected.probabilities is not None
    served = picture("probabilities/pit")
    assert np.ptp(served) > 100, "a constant map would prove nothing"
    np.testing.assert_array_equal(served, np.rint(expected.probabilities[0] * 65_535))
    assert (picture("overlay").std(axis=2) > 0).mean() > 0.9


@pytest.mark.parametrize(
    ("pixels", "code"),
    [
        (np.zeros((HEIGHT, WIDTH, 3), np.uint16), "bayer_colour"),
        (np.zeros((HEIGHT, WIDTH + 1), np.uint16), "bayer_odd_size"),
        (np.zeros((HEIGHT, WIDTH), np.uint8), "bit_depth_mismatch"),
    ],
)
def test_what_is_no_raw_frame_of_the_models_camera_is_refused_by_name(
    client: TestClient, add_model: Callable[..., str], bayer_bundle: Path, pixels: Any, code: str
) -> None:
    model = add_model("raw", bayer_bundle)
    answer = client.post(f"/predict?model={model}", files={"file": ("a.png", png(pixels))})
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (422, code)
    assert problem["hint"]
    assert code == "bit_depth_mismatch" or problem["file"] == "a.png"


def test_a_frame_larger_than_allowed_is_refused(
    client: TestClient, served: str, pixels: Any
) -> None:
    assert isinstance(client.app, FastAPI)
    state = client.app.state
    state.settings = state.settings.model_copy(update={"max_file_bytes": 100})
    raw = png(pixels)
    multipart = client.post("/predict", files={"file": ("a.png", raw)})
    body = client.post("/predict", content=raw, headers={"Content-Type": "image/png"})
    assert (multipart.status_code, body.status_code) == (413, 413)


def test_before_anything_is_deployed_predict_says_how_to_deploy(client: TestClient) -> None:
    problem = client.post("/predict", files={"file": ("a.png", b"")}).json()
    assert problem["status"] == 404
    assert "PUT /deployments/default" in problem["hint"]


def test_a_deployment_goes_forward_and_back(
    client: TestClient, served: str, add_model: Callable[..., str]
) -> None:
    other = add_model("b")
    moved = client.put("/deployments/default", json={"model": other})
    assert moved.status_code == 200
    assert (moved.json()["model"], moved.json()["previous_model"]) == (other, served)
    back = client.post("/deployments/default:rollback").json()
    assert (back["model"], back["previous_model"]) == (served, None)
    assert client.get("/deployments").json()["items"] == [back]


def test_deploying_what_is_deployed_keeps_the_way_back(
    client: TestClient, served: str, add_model: Callable[..., str]
) -> None:
    other = add_model("b")
    client.put("/deployments/default", json={"model": other})
    again = client.put("/deployments/default", json={"model": other}).json()
    assert again["previous_model"] == served


def test_the_first_model_of_a_deployment_has_no_way_back(client: TestClient, served: str) -> None:
    response = client.post("/deployments/default:rollback")
    assert (response.status_code, response.json()["code"]) == (409, "no_previous_model")


def test_a_model_whose_bundle_is_damaged_is_not_deployed(
    client: TestClient, served: str, add_model: Callable[..., str], storage: Storage
) -> None:
    other = add_model("b")
    weights = storage.bundle_dir(other) / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    response = client.put("/deployments/default", json={"model": other})
    assert (response.status_code, response.json()["code"]) == (500, "bundle_damaged")
    assert client.get("/deployments/default").json()["model"] == served


def test_an_unknown_model_cannot_be_deployed(client: TestClient) -> None:
    problem = client.put("/deployments/line-1", json={"model": "mdl_nowhere"}).json()
    assert (problem["status"], problem["where"]) == (422, "/model")


def test_a_bundle_downloads_as_a_tar_that_loads(
    client: TestClient, served: str, tmp_path: Path
) -> None:
    raw = client.get(f"/models/{served}/bundle").content
    with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
        archive.extractall(tmp_path, filter="data")
    assert load_bundle(tmp_path / served).info.classes == ("pit", "scratch")


def test_a_model_shows_its_metrics_and_its_report(client: TestClient, served: str) -> None:
    model = client.get(f"/models/{served}").json()
    assert model["metrics"] == {"dice": 0.5}
    assert model["job"] == "job_a"
    assert client.get(f"/models/{served}/report").json()["metrics"] == {"dice": 0.5}
    assert client.get("/models").json()["items"] == [model]


def test_the_service_is_alive_without_a_worker_but_not_ready(client: TestClient) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    response = client.get("/readyz")
    assert (response.status_code, response.json()["code"]) == (503, "no_worker")


def test_a_model_whose_weights_overflow_gives_an_error_and_never_an_ok(
    client: TestClient, add_model: Callable[..., str], bundle: Path, tmp_path: Path, pixels: Any
) -> None:
    whole = load_bundle(bundle)
    weights = whole.network.state_dict()
    weights["encoder.conv1.weight"][0] = torch.inf
    write_bundle(tmp_path / "bundle", whole.info, weights)
    model_id = add_model("broken", tmp_path / "bundle")

    answer = client.post(f"/predict?model={model_id}", files={"file": ("a.png", png(pixels))})

    assert answer.status_code == 500
    assert answer.json()["code"] == "probabilities_not_finite"
    assert "verdict" not in answer.json()


def test_a_client_that_sends_faster_than_the_model_answers_is_told_to_come_again(
    client: TestClient, served: str
) -> None:
    large = np.random.default_rng(3).integers(0, 256, (640, 640), dtype=np.uint8)
    done, encoded = cv2.imencode(".bmp", large)
    assert done

    def send(_: int) -> Any:
        headers = {"Content-Type": "image/bmp"}
        return client.post("/predict", content=bytes(encoded), headers=headers)

    with ThreadPoolExecutor(40) as threads:
        answers = list(threads.map(send, range(40)))

    refused = [answer for answer in answers if answer.status_code != 200]
    assert refused
    for answer in refused:
        assert answer.status_code == 429
        assert answer.json()["code"] == "client_busy"
        assert int(answer.headers["retry-after"]) >= 1
    # Every frame that was taken was inspected.
    assert {answer.json()["verdict"] for answer in answers if answer.status_code == 200} == {"NG"}
