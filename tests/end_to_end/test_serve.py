"""`hairline serve` keeps its processes alive, leaves cleanly, and never haunts the port."""

import signal
import socket
from collections.abc import Callable
from datetime import timedelta
from urllib.parse import urlsplit

import psutil
import pytest

from service.database.engine import open_engine, session_factory
from service.database.tables import Dataset, Job, Version, now_utc
from service.settings import Settings
from tests.end_to_end.conftest import START_S, RunningService

pytestmark = pytest.mark.slow

Start = Callable[[], RunningService]


def can_connect(url: str) -> bool:
    address = urlsplit(url)
    assert address.hostname is not None
    assert address.port is not None
    try:
        socket.create_connection((address.hostname, address.port), timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True


def add_running_job(service: RunningService) -> str:
    """Put a job into the database that another host's worker looks after."""
    settings = Settings(storage_dir=service.storage)
    engine = open_engine(settings)
    with session_factory(engine).begin() as session:
        session.add(Dataset(id="ds_1", name="rings", task="segmentation", classes=["pit"]))
        session.flush()
        session.add(
            Version(
                id="ver_1",
                dataset_id="ds_1",
                digest="0" * 64,
                classes=["pit"],
                split={},
                statistics={},
            )
        )
        session.flush()
        session.add(
            Job(
                id="job_far",
                version_id="ver_1",
                status="running",
                spec={},
                owner="wrk_far",
                lease_until=now_utc() + timedelta(days=1),
            )
        )
    engine.dispose()
    run_dir = service.storage / "runs" / "job_far"
    run_dir.mkdir()
    (run_dir / "events.jsonl").write_text('{"seq": 1, "kind": "started", "pid": 1}\n')
    return "job_far"


def test_a_dead_worker_is_replaced_and_sigterm_ends_everything(start_service: Start) -> None:
    service = start_service()
    api, worker = service.child("api"), service.child("worker")
    worker.kill()
    worker.wait(START_S)
    while (log := service.log()).count("the worker is process") < 2:
        assert service.process.poll() is None, log
    assert service.child("worker").pid != worker.pid
    assert service.child("api") == api
    replacement = service.child("worker")

    stream = service.client.job_events(add_running_job(service))
    assert next(stream)["kind"] == "started"
    service.send(signal.SIGTERM)
    assert list(stream) == [], "an open stream must end, not break"
    assert service.process.wait(START_S) == 0
    psutil.wait_procs([api, replacement], timeout=START_S)
    assert not api.is_running()
    assert not replacement.is_running()
    assert not can_connect(service.url)


def test_a_killed_service_leaves_no_process_and_no_listener(start_service: Start) -> None:
    service = start_service()
    children = [service.child("api"), service.child("worker")]
    service.send(signal.SIGKILL)
    service.process.wait(START_S)
    _, alive = psutil.wait_procs(children, timeout=START_S)
    assert alive == []
    assert not can_connect(service.url)
