"""A detector behind ``/predict`` answers with boxes; what labels can't teach is refused."""

import base64
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from sqlalchemy import Engine, update

from models import (
    BundleInfo,
    ClassThreshold,
    DetectionSpec,
    ModelSpec,
    NormSpec,
    OperatingPoint,
    Preprocessing,
    build_network,
    freeze_bundle,
    load_bundle,
    write_bundle,
)
from service.database.engine import session_factory
from service.database.tables import Job, Model, Version
from service.storage import Storage

WIDTH, HEIGHT = 90, 70


@pytest.fixture(scope="module")
def detector_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained detector of mono frames that reports whatever it sees."""
    detection = DetectionSpec(pyramid_channels=32, max_detections=50).settle("retinanet", [(9, 7)])
    model = ModelSpec(architecture="retinanet", encoder="mobilenet_v3_small", detection=detection)
    info = BundleInfo(
        task="detection",
        classes=("pit", "scratch"),
        model=model,
        norm=NormSpec(kind="bn"),
        preprocessing=Preprocessing(
            in_channels=1, bit_depth=8, mean=(120.0,), std=(40.0,), stride_px=model.stride_px
        ),
        operating_point=OperatingPoint(
            classes={name: ClassThreshold(threshold=0.0) for name in ("pit", "scratch")}
        ),
        dataset_digest="0" * 64,
    )
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("trained") / "bundle"
    write_bundle(path, info, build_network(info).state_dict())
    return path


@pytest.fixture
def served(
    client: TestClient, engine: Engine, storage: Storage, version_id: str, detector_bundle: Path
) -> str:
    with session_factory(engine).begin() as session:
        session.add(Job(id="job_a", version_id=version_id, status="succeeded", spec={}))
        session.flush()
        session.add(Model(id="mdl_a", job_id="job_a", version_id=version_id, report={}))
    shutil.copytree(detector_bundle, storage.bundle_dir("mdl_a"))
    assert client.put("/deployments/default", json={"model": "mdl_a"}).status_code == 201
    return "mdl_a"


@pytest.fixture
def pixels() -> Any:
    return np.random.default_rng(3).integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)


def png(pixels: Any) -> bytes:
    done, encoded = cv2.imencode(".png", pixels)
    assert done
    return bytes(encoded)


def test_the_boxes_are_those_of_the_bundle_on_disk_and_are_drawn(
    client: TestClient, served: str, detector_bundle: Path, pixels: Any
) -> None:
    files = {"file": ("a.png", png(pixels))}
    answer = client.post("/predict?include=overlay", files=files).json()
    expected = freeze_bundle(load_bundle(detector_bundle), "cpu").inspect(pixels)
    assert answer["verdict"] == expected.verdict == "NG"
    assert [tuple(defect["box"]) for defect in answer["defects"]] == [
        defect.box for defect in expected.defects
    ]
    assert [defect["class"] for defect in answer["defects"]] == [
        defect.class_name for defect in expected.defects
    ]
    assert all(defect["polygon"] == [] for defect in answer["defects"])
    assert all(
        defect["area_px"] == defect["box"][2] * defect["box"][3] for defect in answer["defects"]
    )
    raw = np.frombuffer(base64.b64decode(answer["pictures"]["overlay"]), np.uint8)
    overlay = cv2.imdecode(raw, cv2.IMREAD_UNCHANGED)
    assert overlay is not None
    assert overlay.shape == (HEIGHT, WIDTH, 3)
    x, y, width, height = answer["defects"][0]["box"]
    # The frame is grey and what is drawn has a colour, on the box's own pixels.
    corners = overlay[[y, y, y + height - 1, y + height - 1], [x, x + width - 1, x, x + width - 1]]
    assert (corners.max(axis=1) > corners.min(axis=1)).all()


@pytest.mark.parametrize("picture", ["mask", "heatmap", "probabilities"])
def test_pictures_of_pixels_are_refused_with_what_can_be_had(
    client: TestClient, served: str, pixels: Any, picture: str
) -> None:
    files = {"file": ("a.png", png(pixels))}
    response = client.post(f"/predict?include=overlay,{picture}", files=files)
    problem = response.json()
    assert (response.status_code, problem["code"]) == (422, "picture_not_available")
    assert picture in problem["detail"]
    assert problem["where"] == "query/include"
    assert "include=overlay" in problem["hint"]


def with_labels(engine: Engine, version_id: str, labels: dict[str, int]) -> None:
    with session_factory(engine).begin() as session:
        session.execute(
            update(Version).where(Version.id == version_id).values(statistics={"labels": labels})
        )


def test_segmentation_on_boxes_alone_is_refused_before_a_job_is_queued(
    client: TestClient, engine: Engine, version_id: str
) -> None:
    with_labels(engine, version_id, {"boxes": 7, "good": 3})
    response = client.post("/jobs", json={"version": version_id})
    problem = response.json()
    assert (response.status_code, problem["code"]) == (422, "boxes_only")
    assert problem["where"] == "/model/architecture"
    assert "fasterrcnn, retinanet, fcos" in problem["hint"]
    assert client.get("/jobs").json()["items"] == []

    asked = {"version": version_id, "model": {"architecture": "fasterrcnn"}}
    assert client.post("/jobs", json=asked).status_code == 201


@pytest.mark.parametrize("labels", [{"boxes": 7, "polygons": 1}, {"mask": 2}, {"good": 4}])
def test_other_labels_may_be_tried_by_either_task(
    client: TestClient, engine: Engine, version_id: str, labels: dict[str, int]
) -> None:
    with_labels(engine, version_id, labels)
    for architecture in ("unet", "retinanet"):
        asked = {"version": version_id, "model": {"architecture": architecture}}
        assert client.post("/jobs", json=asked).status_code == 201


@pytest.mark.parametrize(
    ("wish", "named"),
    [
        ({"loss": {"kind": "focal"}}, "'focal' is for pixels"),
        ({"memory": {"look_tile_px": 512}}, "boxes compete over the whole frame"),
    ],
)
def test_what_a_detector_does_not_take_is_refused_before_a_job_is_queued(
    client: TestClient, version_id: str, wish: dict[str, Any], named: str
) -> None:
    asked = {"version": version_id, "model": {"architecture": "fcos"}, **wish}
    problem = client.post("/jobs", json=asked).json()
    assert problem["status"] == 422
    assert named in problem["detail"]


def test_a_detector_s_wishes_are_checked_by_name(client: TestClient, version_id: str) -> None:
    model = {"architecture": "fasterrcnn", "detection": {"nms_iou": 2}}
    response = client.post("/jobs", json={"version": version_id, "model": model})
    assert response.status_code == 422
    assert response.json()["where"] == "/model/detection/nms_iou"
