"""A model gets the fastest engine that judges as it does, while it serves; exports are gated."""

import io
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
import pytest
import torch
from fastapi.testclient import TestClient
from sqlalchemy import Engine, update
from typer.testing import CliRunner

from models import FrozenModel, load_bundle, read_bundle_info
from models.engine_record import (
    EngineMeasurement,
    EngineRecord,
    GoldenSet,
    Machine,
    model_digest,
    read_record,
    write_record,
)
from models.parity import Flip, ParityOutcome
from service.api.app import create_app
from service.cli import app as command_line
from service.database.engine import session_factory
from service.database.tables import EngineTask, Model
from service.settings import Settings
from service.storage import Storage
from service.worker.worker import Worker
from tests.trained_bundle import patched_frame, write_trained

FRAMES = 8
# A process that imports torch, OpenVINO and NNCF, exports and compares, beside other tests.
PATIENCE_S = 240.0


def png(pixels: Any) -> bytes:
    return bytes(cv2.imencode(".png", pixels)[1])


def frozen_version(client: TestClient) -> str:
    body: Any = {"name": "patches", "task": "segmentation", "classes": ["pit", "dent"]}
    dataset = client.post("/datasets", json=body).json()
    for seed in range(FRAMES):
        name = f"{seed}.png"
        files = [("files", (name, png(patched_frame(seed, 8))))]
        assert client.post(f"/datasets/{dataset['id']}/images", files=files).status_code < 300
    split = {"train": 0.5, "calibration": 0.5, "test": 0.0}
    body = {"unlabelled": "good", "split": split}
    answer = client.post(f"/datasets/{dataset['id']}/versions", json=body)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


@pytest.fixture
def trained_model(client: TestClient, engine: Engine, add_model: Any, tmp_path: Path) -> str:
    """A model whose version has real frames, deployed as ``default``."""
    write_trained(tmp_path / "trained", [patched_frame(seed, 8) for seed in range(FRAMES)], 8)
    model_id: str = add_model("a", tmp_path / "trained")
    version_id = frozen_version(client)
    with session_factory(engine).begin() as session:
        session.execute(update(Model).values(version_id=version_id))
    assert client.put("/deployments/default", json={"model": model_id}).status_code == 201
    return model_id


def prepared(client: TestClient, model_id: str, worker: Worker) -> Any:
    deadline = time.monotonic() + PATIENCE_S
    while (found := client.get(f"/models/{model_id}/engines").json())["status"] in {
        "queued",
        "running",
    }:
        assert time.monotonic() < deadline
        worker.tick()
        time.sleep(0.05)
    return found


def answered(client: TestClient, seed: int = 3) -> Any:
    answer = client.post("/predict", files={"file": ("a.png", png(patched_frame(seed, 8)))})
    assert answer.status_code == 200, answer.text
    return answer.json()


def answered_by(client: TestClient, name: str) -> Any:
    deadline = time.monotonic() + PATIENCE_S
    while (answer := answered(client))["model"]["engine"] != name:
        assert time.monotonic() < deadline, answer
        time.sleep(0.05)
    return answer


@pytest.mark.slow
def test_a_model_is_served_by_what_was_prepared_and_by_torch_when_that_is_damaged(
    client: TestClient,
    settings: Settings,
    storage: Storage,
    trained_model: str,
    new_worker: Callable[..., Worker],
    tmp_path: Path,
) -> None:
    url = f"/models/{trained_model}"
    assert client.get(f"{url}/engines").json()["status"] == "none"
    before = answered(client)
    assert (before["model"]["engine"], before["warnings"]) == ("torch-fp32", [])
    early = client.get(f"{url}/exports/onnx")
    assert (early.status_code, early.json()["code"]) == (409, "engines_not_prepared")

    queued = client.post(f"{url}/engines")
    assert (queued.status_code, queued.json()["status"]) == (202, "queued")
    told = prepared(client, trained_model, new_worker("finish"))
    assert (told["status"], told["error"], told["unusable"]) == ("done", None, None)
    by_name = {engine["name"]: engine for engine in told["engines"]}
    for name in ("openvino-fp32", "onnxruntime-fp32"):
        assert by_name[name]["refusal"] is None
        # Four calibration frames and five drawn ones.
        assert by_name[name]["parity"]["frames"] == 9
        assert by_name[name]["parity"]["flips"] == 0
    assert by_name[told["chosen"]]["refusal"] is None
    answered_by(client, told["chosen"])

    # The model under way changes its engine between two frames, whichever was the faster here.
    folder = storage.exports_dir(trained_model)
    record = read_record(folder)
    assert record is not None
    write_record(folder, record.model_copy(update={"chosen": "openvino-fp32"}))
    after = answered_by(client, "openvino-fp32")
    assert after["warnings"] == []
    assert (after["verdict"], len(after["defects"])) == (before["verdict"], len(before["defects"]))

    check_export(client, url, storage.bundle_dir(trained_model))

    # A file that is not the one that was compared: the next start serves by torch and says so.
    weights = folder / "model.bin"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")
    with TestClient(create_app(settings)) as restarted:
        answer = answered(restarted)
        assert answer["model"]["engine"] == "torch-fp32"
        assert any("model.bin" in warning for warning in answer["warnings"])
        assert answer["verdict"] == before["verdict"]
        damaged = restarted.get(f"{url}/exports/openvino")
        assert (damaged.status_code, damaged.json()["code"]) == (409, "export_damaged")

    # Measured elsewhere.
    machine = record.machine.model_copy(update={"processor": "another"})
    write_record(folder, record.model_copy(update={"machine": machine}))
    answer = answered_by(client, "torch-fp32")
    assert any("processor" in warning for warning in answer["warnings"])
    assert "processor" in client.get(f"{url}/engines").json()["unusable"]


def check_export(client: TestClient, url: str, bundle: Path) -> None:
    """What is downloaded runs without Hairline and gives the model's probabilities."""
    archive = client.get(f"{url}/exports/onnx")
    assert archive.status_code == 200, archive.text
    with tarfile.open(fileobj=io.BytesIO(archive.content)) as files:
        by_name = {Path(member.name).name: files.extractfile(member) for member in files}
        assert by_name.keys() == {"model.onnx", "engines.json", "bundle.json"}
        graph = by_name["model.onnx"]
        assert graph is not None
        session = onnxruntime.InferenceSession(graph.read())
    pixels = patched_frame(3, 8, size=(72, 104))
    (answer,) = session.run(["probabilities"], {"pixels": pixels[None, :, :, None]})
    expected = FrozenModel(load_bundle(bundle), "cpu").probabilities(pixels)
    np.testing.assert_allclose(answer[0], expected, rtol=0, atol=1e-5)


def refused_record(storage: Storage, model_id: str) -> None:
    """Leave what a preparation leaves whose ONNX file judged a frame differently."""
    parity = ParityOutcome(
        frames=32,
        flips=1,
        listed=(Flip(frame="ring 17.png", reference="NG (pit)", engine="OK"),),
        largest_difference=0.3,
        largest_at="ring 17.png",
        tolerance=1e-3,
        smallest_margin=0.01,
    )
    engines = (
        EngineMeasurement(name="torch-fp32", device="cpu", median_ms=5.0, times_faster=1.0),
        EngineMeasurement(
            name="onnxruntime-fp32", device="cpu", parity=parity, refusal=parity.refusal
        ),
    )
    record = EngineRecord(
        model_digest=model_digest(read_bundle_info(storage.bundle_dir(model_id))),
        machine=Machine.here(torch.device("cpu")),
        frame_size=(64, 96),
        golden=GoldenSet(available=32, scored=0, compared=32, synthetic=0, quantized_on=0),
        engines=engines,
        chosen="torch-fp32",
        files={},
    )
    storage.exports_dir(model_id).mkdir(parents=True)
    write_record(storage.exports_dir(model_id), record)


def test_an_export_that_judges_otherwise_is_refused_with_the_frame(
    client: TestClient, storage: Storage, served: str, tmp_path: Path
) -> None:
    refused_record(storage, served)
    answer = client.get(f"/models/{served}/exports/onnx")
    assert answer.status_code == 409
    assert answer.json()["code"] == "export_refused"
    assert "ring 17.png: OK instead of NG (pit)" in answer.json()["detail"]
    never = client.get(f"/models/{served}/exports/openvino").json()
    assert (never["code"], "it was not compared" in never["detail"]) == ("export_refused", True)


def test_the_command_line_refuses_too_and_writes_nothing(
    port: int, storage: Storage, add_model: Any, tmp_path: Path
) -> None:
    model_id = add_model("a")
    refused_record(storage, model_id)
    arguments = ["export", model_id, "--format", "onnx", "--url", f"http://127.0.0.1:{port}"]
    result = CliRunner().invoke(command_line, [*arguments, "--output", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert "ring 17.png" in result.output
    assert list((tmp_path / "out").iterdir()) == []


def test_a_deployment_asks_for_its_models_engines_once(
    settings: Settings, engine: Engine, add_model: Any
) -> None:
    model_id = add_model("a")
    asking = settings.model_copy(update={"prepare_engines": True})
    with TestClient(create_app(asking)) as client:
        assert client.put("/deployments/line-1", json={"model": model_id}).status_code == 201
        assert client.get(f"/models/{model_id}/engines").json()["status"] == "queued"
        with session_factory(engine).begin() as session:
            session.execute(update(EngineTask).values(status="done"))
        # The second name serves what was prepared for the first one.
        assert client.put("/deployments/line-2", json={"model": model_id}).status_code == 201
        assert client.get(f"/models/{model_id}/engines").json()["status"] == "done"


def test_what_no_worker_looks_after_any_more_is_prepared_again(
    client: TestClient, engine: Engine, served: str, new_worker: Callable[..., Worker]
) -> None:
    assert client.post(f"/models/{served}/engines").json()["status"] == "queued"
    # Twice asked is once asked.
    assert client.post(f"/models/{served}/engines").json()["status"] == "queued"
    dead, heir = new_worker("finish"), new_worker("finish")
    with session_factory(engine).begin() as session:
        session.execute(update(EngineTask).values(status="running", owner=dead.id))
    dead.close()
    # The stand-in version has no manifest: the heir finds out, and says so.
    found = prepared(client, served, heir)
    assert found["status"] == "failed"
    assert found["error"]["code"] == "manifest_unreadable"
