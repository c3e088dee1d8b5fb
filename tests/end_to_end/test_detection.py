"""Boxes go in by REST, a detector comes out and answers ``/predict`` with boxes."""

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
import pytest

from service.client.transport import HairlineError
from tests.end_to_end.conftest import RunningService

pytestmark = pytest.mark.slow

WIDTH, HEIGHT = 112, 96
CLASSES = ["pit", "stain"]
TINY: dict[str, Any] = {
    "model": {
        "architecture": "fcos",
        "encoder": "mobilenet_v3_small",
        "detection": {"pyramid_channels": 32},
    },
    "norm": {"kind": "cbn", "window_size": 4},
    "batch_size": 1,
    "budget": {"max_epochs": 1, "max_steps": 4},
    "device": "cpu",
}


def write_yolo_set(folder: Path) -> list[tuple[str, Path]]:
    """Frames with a dark or a bright square, boxed as YOLO does; every third is good."""
    random = np.random.default_rng(0)
    files = []
    for index in range(12):
        pixels = random.integers(90, 160, (HEIGHT, WIDTH), dtype=np.uint8)
        line = ""
        if index % 3:
            x, y, side = int(random.integers(0, 80)), int(random.integers(0, 64)), 24
            pixels[y : y + side, x : x + side] = 20 if index % 2 else 230
            middle = ((x + side / 2) / WIDTH, (y + side / 2) / HEIGHT)
            place = f"{middle[0]:.6f} {middle[1]:.6f} {side / WIDTH:.6f} {side / HEIGHT:.6f}"
            line = f"{index % 2} {place}\n"
        frame, label = folder / f"{index:02}.png", folder / f"{index:02}.txt"
        frame.write_bytes(imagecodecs.png_encode(pixels))
        label.write_text(line)
        files += [(f"images/{frame.name}", frame), (f"labels/{label.name}", label)]
    return files


def test_boxes_train_a_detector_that_is_deployed_and_inspects_frames(
    start_service: Callable[[], RunningService], tmp_path: Path
) -> None:
    client = start_service().client
    files = write_yolo_set(tmp_path)
    dataset = client.create_dataset("castings", task="detection", classes=CLASSES)
    assert client.upload(dataset.id, files).counts["accepted"] == len(files)
    version = client.freeze(dataset.id)
    assert version.statistics["labels"] == {"boxes": 8, "good": 4}

    with pytest.raises(HairlineError) as refused:
        client.create_job(version.id)
    assert refused.value.code == "boxes_only"

    job = client.wait_for_job(client.create_job(version.id, **TINY).id, timeout_s=300)
    assert job.status == "succeeded", job.error
    assert job.model is not None
    report = client.model_report(job.model)
    assert report["task"] == "detection"
    assert report["training"]["resolution"] == {"mode": "native"}
    assert report["training"]["steps"] == 4
    assert {layer["kind"] for layer in report["norm"]["converted"]} == {"cbn"}
    assert report["folding"]["left"] == []
    assert report["parity"]["max_difference"] <= report["parity"]["tolerance"]
    # Squares of 24 px, whatever size torchvision would have scaled the frames to.
    assert report["model"]["detection"]["finest_stride_px"] == 8

    client.deploy("line-1", job.model)
    answer = client.predict(files[0][1], deployment="line-1", include=["overlay"])
    assert answer.verdict == ("NG" if answer.defects else "OK")
    for defect in answer.defects:
        x, y, width, height = defect.box
        assert 0 <= x < x + width <= WIDTH
        assert 0 <= y < y + height <= HEIGHT
        assert defect.polygon == ()
    picture = np.frombuffer(base64.b64decode(answer.pictures["overlay"]), np.uint8)
    overlay = cv2.imdecode(picture, cv2.IMREAD_COLOR)
    assert overlay is not None
    assert overlay.shape == (HEIGHT, WIDTH, 3)
    with pytest.raises(HairlineError) as no_mask:
        client.predict(files[0][1], deployment="line-1", include=["mask"])
    assert no_mask.value.code == "picture_not_available"

    # Does full resolution pay?  Asked of the same boxes.
    light = {**TINY, "budget": {"max_steps": 2}}
    asked = client.create_comparison(version.id, arms=["native", "half"], equal="steps", job=light)
    compared = client.wait_for_comparison(asked.id, timeout_s=300, poll_s=0.2)
    assert [arm.status for arm in compared.arms] == ["succeeded", "succeeded"]
    results = [arm.result for arm in compared.arms if arm.result]
    assert all(result.ap50 is not None and result.dice is None for result in results)
    assert results[0].recall.n == results[1].recall.n > 0
    half = client.predict(files[0][1], model=compared.arms[1].model)
    assert any("resized from 112x96 to 56x48 px" in warning for warning in half.warnings)
