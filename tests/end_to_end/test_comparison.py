"""Does full resolution pay?  Asked from the shell, with an arm's training killed on its way."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from data.synthetic import write_dataset
from tests.end_to_end.conftest import START_S, RunningService
from training.events import read_events

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

LIGHT_JOB = """{
  "model": {"encoder": "mobilenet_v3_small", "encoder_depth": 3, "decoder_channels": [16, 8, 8]},
  "device": "cpu", "checkpoint_every_s": 0
}"""


def frozen_version(service: RunningService, folder: Path) -> str:
    write_dataset(folder, count=12, good_rate=0.5, seed=0, width_px=150, height_px=97)
    dataset = service.client.create_dataset("rings", classes=["scratch", "pit", "stain"])
    files = sorted(folder.rglob("*.png"))
    service.client.upload(
        dataset.id, [(path.relative_to(folder).as_posix(), path) for path in files]
    )
    return service.client.freeze(dataset.id).id


def kill_once_it_saved(service: RunningService, job: str) -> None:
    events = service.storage / "runs" / job / "events.jsonl"
    deadline = time.monotonic() + START_S
    while not any(event["kind"] == "checkpoint" for event in read_events(events)):
        assert time.monotonic() < deadline, service.client.job_logs(job)
        time.sleep(0.05)
    assert read_events(events)[-1]["kind"] != "finished", "too short to be killed"
    pid = next(event["pid"] for event in read_events(events) if event["kind"] == "started")
    os.kill(pid, signal.SIGKILL)


def test_arms_are_compared_on_the_same_frames_though_one_was_killed(
    start_service: Callable[[], RunningService], tmp_path: Path
) -> None:
    service = start_service()
    version = frozen_version(service, tmp_path / "frames")
    (tmp_path / "job.json").write_text(LIGHT_JOB)
    command = [sys.executable, "-m", "service.cli", "compare", version, "--url", service.url]
    command += ["--arms", "half,native", "--equal", "steps", "--budget", "12"]
    command += ["--job", str(tmp_path / "job.json"), "--html", str(tmp_path / "page.html")]
    asking = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert asking.stderr is not None
    comparison_id = asking.stderr.readline().partition(":")[0]
    half = service.client.comparison(comparison_id).arms[0]
    kill_once_it_saved(service, half.job)
    told, complaints = asking.communicate(timeout=START_S)
    assert asking.returncode == 0, complaints

    found = service.client.comparison(comparison_id)
    assert [(arm.name, arm.status) for arm in found.arms] == [
        ("half", "succeeded"),
        ("native", "succeeded"),
    ]
    assert service.client.job(half.job).attempts == 2
    results = [arm.result for arm in found.arms if arm.result]
    assert [result.training.steps for result in results] == [12, 12]
    assert results[0].recall.n == results[1].recall.n > 0
    assert results[0].peak_memory_since == "last resume"
    assert results[0].resized_labels is not None
    assert {pair.reference for pair in found.pairs} == {"native"}
    assert found.findings[0] in told
    assert found.findings[0] in (tmp_path / "page.html").read_text()

    frame = sorted((tmp_path / "frames" / "images").glob("*.png"))[0]
    resized = service.client.predict(frame, model=found.arms[0].model)
    assert any("resized from 150x97 to 75x48 px" in warning for warning in resized.warnings)
    assert (resized.image.width, resized.image.height) == (150, 97)
    assert "resizes each frame by 0.5" in service.client.model(str(found.arms[0].model)).notes[0]
    assert service.client.model(str(found.arms[1].model)).notes == ()
    whole = service.client.predict(frame, model=found.arms[1].model)
    assert not any("resized" in warning for warning in whole.warnings)
