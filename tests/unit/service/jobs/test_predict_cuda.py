"""The line on a GPU: answers in time, none late and OK, and an engine that takes over."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient

from models import read_bundle_info
from models.engine_record import (
    EngineMeasurement,
    EngineRecord,
    GoldenSet,
    Machine,
    model_digest,
    write_record,
)
from service.settings import Settings
from service.storage import Storage

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device"),
]

PATIENCE_S = 60.0


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(storage_dir=tmp_path / "storage", device="cuda")


def test_frames_are_answered_in_time_and_a_late_one_is_never_ok(
    client: TestClient, served: str, pictures: Any
) -> None:
    files = {"file": ("part.png", pictures.frame(1))}
    for _ in range(3):
        answer = client.post("/predict?deadline_ms=60000", files=files).json()
        assert (answer["verdict"], answer["model"]["engine"]) == ("NG", "torch-fp32")
    late = client.post("/predict?deadline_ms=0.001", files=files).json()
    assert late["verdict"] == "NOT_INSPECTED"


def test_the_engine_that_was_chosen_takes_over_while_frames_are_answered(
    client: TestClient, served: str, storage: Storage, pictures: Any
) -> None:
    files = {"file": ("part.png", pictures.frame(1))}
    before = client.post("/predict", files=files).json()
    device = torch.device("cuda")
    record = EngineRecord(
        model_digest=model_digest(read_bundle_info(storage.bundle_dir(served))),
        machine=Machine.here(device),
        frame_size=(64, 96),
        golden=GoldenSet(available=1, scored=0, compared=1, synthetic=5, quantized_on=0),
        engines=(
            EngineMeasurement(name="torch-fp16", device="cuda", median_ms=1.0, times_faster=4.0),
        ),
        chosen="torch-fp16",
        files={},
    )
    storage.exports_dir(served).mkdir(parents=True)
    write_record(storage.exports_dir(served), record)
    deadline_s = time.monotonic() + PATIENCE_S
    while True:
        answer = client.post("/predict", files=files).json()
        assert answer["verdict"] == before["verdict"]
        if answer["model"]["engine"] == "torch-fp16":
            break
        assert time.monotonic() < deadline_s, answer
    assert answer["warnings"] == before["warnings"]
    assert client.get(f"/models/{served}/engines").json()["unusable"] is None
