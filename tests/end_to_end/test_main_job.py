"""The main job on real images: upload, train at native size and batch 2 with CBN, predict."""

import base64
import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from data import decode_image
from service.client import HairlineClient
from tests.oracles.trained_forward import trained_forward

pytestmark = [pytest.mark.datasets, pytest.mark.slow, pytest.mark.timeout(1200)]

# Small enough for a few native steps on two cores; everything else is the product's default.
LIGHT: dict[str, Any] = {
    "model": {
        "encoder": "mobilenet_v3_small",
        "encoder_depth": 4,
        "decoder_channels": [32, 16, 8, 8],
    },
    "resolution": {"mode": "native"},
    "norm": {"kind": "cbn", "window_size": 4},
    "batch_size": 2,
    "budget": {"max_epochs": 2, "max_steps": 6},
}
JOB_S = 900.0
# Float32 products in another order (folding), then rounding to the 16 bits of the picture.
TOLERANCE = 1e-4 + 1 / 65_535


def bsdata_files(root: Path) -> list[tuple[str, Path]]:
    """Large frames with pits, small ones with pits, small ones without, and their labels."""
    images = sorted((root / "data").glob("*.jpg"))
    large = [path for path in images if path.name.startswith("KGT")][:6]
    labelled = [path for path in images if (root / "label" / f"{path.stem}.json").exists()]
    small = [path for path in labelled if not path.name.startswith("KGT")][:6]
    clean = [path for path in images if path not in labelled][:6]
    chosen = [*large, *small, *clean]
    labels = [root / "label" / f"{path.stem}.json" for path in (*large, *small)]
    return [(path.relative_to(root).as_posix(), path) for path in (*chosen, *labels)]


def weld_files(root: Path) -> list[tuple[str, Path]]:
    """Test-folder photos with their masks."""
    images = sorted((root / "test" / "images").glob("*.jpg"))[:14]
    masks = [root / "test" / "masks" / f"{path.stem}_mask.png" for path in images]
    return [(path.relative_to(root).as_posix(), path) for path in (*images, *masks)]


def train_over_rest(
    client: HairlineClient,
    name: str,
    files: Sequence[tuple[str, Path]],
    **freeze: Any,
) -> tuple[str, str]:
    """Upload, freeze, train and deploy; return the job's and the model's id."""
    dataset = client.create_dataset(name)
    uploaded = client.upload(dataset.id, files)
    assert uploaded.counts["accepted"] == len(files)
    version = client.freeze(dataset.id, **freeze)
    job = client.wait_for_job(client.create_job(version.id, **LIGHT).id, timeout_s=JOB_S)
    assert job.status == "succeeded", job.error
    assert job.model is not None
    client.deploy(name, job.model)
    return job.id, job.model


def check_report(report: dict[str, Any]) -> None:
    """CBN in every layer, native size, batch 2."""
    assert len(report["norm"]["converted"]) > 30
    assert {layer["kind"] for layer in report["norm"]["converted"]} == {"cbn"}
    assert all(layer["convolution"] for layer in report["norm"]["converted"])
    assert report["norm"]["left"] == []
    assert report["folding"]["left"] == []
    assert report["training"]["resolution"] == {"mode": "native"}
    assert report["training"]["batch_size"] == 2
    assert report["training"]["steps"] == 6
    assert report["parity"]["max_difference"] <= report["parity"]["tolerance"]


def test_labelme_frames_train_and_are_inspected(
    start_service: Callable[[], Any], datasets_dir: Path, tmp_path: Path
) -> None:
    service = start_service()
    client = service.client
    files = bsdata_files(datasets_dir / "bsdata")
    job, model = train_over_rest(client, "ball-screws", files, unlabelled="good")
    report = client.model_report(model)
    check_report(report)
    metrics = report["metrics"]
    assert metrics["escape"]["n"] + metrics["overkill"]["n"] == metrics["frames"]
    assert client.job_report(job) == report
    page = tmp_path / "report.html"
    command = [sys.executable, "-m", "service.cli", "report", job, "--html", str(page)]
    told = subprocess.run(
        [*command, "--url", service.url], capture_output=True, text=True, check=False
    )
    assert told.returncode == 0, told.stderr
    assert report["statements"][0] in told.stdout
    assert page.read_text(encoding="utf-8") == client.job_report_page(job)
    assert "Worst misses" in page.read_text(encoding="utf-8")

    unseen = sorted((datasets_dir / "bsdata" / "data").glob("KGT*.jpg"))[-1]
    answer = client.predict(unseen, deployment="ball-screws", include=["overlay", "mask"])
    assert answer.verdict == ("NG" if answer.defects else "OK")
    assert answer.image.sha256 == hashlib.sha256(unseen.read_bytes()).hexdigest()
    overlay = decode_picture(answer.pictures["overlay"])
    assert overlay.shape == (answer.image.height, answer.image.width, 3)
    assert answer.model.id == model


def test_the_served_model_is_the_trained_one(
    start_service: Callable[[], Any], datasets_dir: Path, tmp_path: Path
) -> None:
    service = start_service()
    files = weld_files(datasets_dir / "weld_seg" / "data")
    job, model = train_over_rest(service.client, "welds", files)
    check_report(service.client.model_report(model))

    run_dir = tmp_path / "copy"
    shutil.copytree(service.storage / "runs" / job, run_dir)
    trained = trained_forward(run_dir)
    for _, path in files[:2]:
        expected = trained.probabilities(decode_image(path.read_bytes(), name=path.name).pixels)
        answer = service.client.predict(path, deployment="welds", include=["probabilities"])
        served = decode_picture(answer.pictures["probabilities/defect"])
        assert served.dtype == np.uint16
        assert np.ptp(expected) > 100 * TOLERANCE, "a constant map would prove nothing"
        np.testing.assert_allclose(served / 65_535, expected[0], rtol=0, atol=TOLERANCE)


def decode_picture(encoded: str) -> np.ndarray:
    picture = cv2.imdecode(np.frombuffer(base64.b64decode(encoded), np.uint8), cv2.IMREAD_UNCHANGED)
    assert picture is not None
    return np.asarray(picture)
