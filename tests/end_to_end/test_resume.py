"""Training survives: its own death, the service's death, and both; nothing is trained twice."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from data.synthetic import write_dataset
from service.client import HairlineClient
from service.resources import JobResource
from tests.end_to_end.conftest import START_S, RunningService

pytestmark = pytest.mark.slow

Start = Callable[[], RunningService]

STEPS = 30


def queue_training(client: HairlineClient, folder: Path) -> JobResource:
    """Queue a job that is small, but long enough to be killed on its way."""
    write_dataset(folder, count=12, good_rate=0.5, seed=0, width_px=128, height_px=96)
    dataset = client.create_dataset("rings", classes=["scratch", "pit", "stain"])
    files = sorted(path for path in folder.rglob("*.png"))
    client.upload(dataset.id, [(path.relative_to(folder).as_posix(), path) for path in files])
    return client.create_job(
        client.freeze(dataset.id).id,
        model={
            "encoder": "mobilenet_v3_small",
            "encoder_depth": 3,
            "decoder_channels": [16, 8, 8],
        },
        budget={"max_epochs": 1000, "max_steps": STEPS},
        early_stopping=None,
        checkpoint_every_s=0.0,
        device="cpu",
    )


def events_of(service: RunningService, job: JobResource) -> list[dict[str, Any]]:
    path = service.storage / "runs" / job.id / "events.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def of_kind(events: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [event for event in events if event["kind"] == kind]


def wait_for_checkpoint(service: RunningService, job: JobResource) -> int:
    """Wait until the run has saved something, and return its process id."""
    deadline = time.monotonic() + START_S
    while not of_kind(events := events_of(service, job), "checkpoint"):
        hopeless = of_kind(events, "failed") or time.monotonic() >= deadline
        assert not hopeless, service.client.job_logs(job.id)
        time.sleep(0.05)
    assert not of_kind(events, "finished"), "the run was too short to be killed"
    return int(of_kind(events, "started")[-1]["pid"])


def test_killed_training_goes_on_from_its_checkpoint(start_service: Start, tmp_path: Path) -> None:
    service = start_service()
    job = queue_training(service.client, tmp_path / "frames")
    os.kill(wait_for_checkpoint(service, job), signal.SIGKILL)
    ended = service.client.wait_for_job(job.id, timeout_s=START_S)
    assert ended.status == "succeeded", ended.error
    assert ended.attempts == 2
    started = of_kind(events_of(service, job), "started")
    assert started[0]["resumed_from_step"] is None
    assert started[1]["resumed_from_step"] > 0
    assert ended.progress.step == STEPS
    streamed = list(service.client.job_events(job.id))
    assert streamed[-1] == {"kind": "status", "status": "succeeded"}
    seqs = [event["seq"] for event in streamed[:-1]]
    assert seqs == list(range(1, len(seqs) + 1))
    half = seqs[len(seqs) // 2]
    assert list(service.client.job_events(job.id, last_event_id=half)) == streamed[half:]


def test_training_outlives_a_killed_service_and_is_adopted(
    start_service: Start, tmp_path: Path
) -> None:
    first = start_service()
    job = queue_training(first.client, tmp_path / "frames")
    pid = wait_for_checkpoint(first, job)
    first.send(signal.SIGKILL)
    first.process.wait()
    assert psutil.pid_exists(pid)
    second = start_service()
    ended = second.client.wait_for_job(job.id, timeout_s=START_S)
    assert ended.status == "succeeded", ended.error
    assert ended.attempts == 1
    assert [event["pid"] for event in of_kind(events_of(second, job), "started")] == [pid]


def test_after_a_power_cut_the_restarted_service_goes_on(
    start_service: Start, tmp_path: Path
) -> None:
    first = start_service()
    job = queue_training(first.client, tmp_path / "frames")
    pid = wait_for_checkpoint(first, job)
    first.send(signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    first.process.wait()
    second = start_service()
    ended = second.client.wait_for_job(job.id, timeout_s=START_S)
    assert ended.status == "succeeded", ended.error
    assert ended.attempts == 2
    assert of_kind(events_of(second, job), "started")[-1]["resumed_from_step"] > 0
    model = second.client.model(str(ended.model))
    assert model.job == job.id
