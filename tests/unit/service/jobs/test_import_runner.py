"""Archives are imported beside training, and one left half-done is done by the next worker."""

import io
import time
import zipfile
from collections.abc import Callable

import cv2
import numpy as np
from fastapi.testclient import TestClient
from sqlalchemy import Engine, update

from service.database.engine import session_factory
from service.database.tables import Import
from service.worker.worker import Worker

PATIENCE_S = 30.0


def queued_import(client: TestClient) -> str:
    """Upload an archive of two frames and return the URL of its import."""
    dataset = client.post("/datasets", json={"name": "rings", "task": "segmentation"}).json()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for seed in range(2):
            pixels = np.random.default_rng(seed).integers(0, 256, (64, 96), dtype=np.uint8)
            archive.writestr(f"images/{seed}.png", cv2.imencode(".png", pixels)[1].tobytes())
    url = f"/datasets/{dataset['id']}"
    response = client.put(f"{url}/archive", content=buffer.getvalue())
    assert response.status_code == 202, response.text
    return f"{url}/imports/{response.json()['import']['id']}"


def wait_for_end(client: TestClient, url: str, worker: Worker) -> str:
    deadline = time.monotonic() + PATIENCE_S
    while (status := client.get(url).json()["status"]) in {"queued", "running"}:
        assert time.monotonic() < deadline
        worker.tick()
        time.sleep(0.02)
    return str(status)


def test_a_queued_archive_is_imported(
    client: TestClient, new_worker: Callable[..., Worker]
) -> None:
    url = queued_import(client)
    assert wait_for_end(client, url, new_worker("finish")) == "succeeded"
    dataset = client.get(url.partition("/imports")[0]).json()
    assert dataset["counts"]["items"] == 2


def test_an_import_whose_worker_died_is_done_by_the_next(
    client: TestClient, engine: Engine, new_worker: Callable[..., Worker]
) -> None:
    url = queued_import(client)
    dead = new_worker("finish")
    with session_factory(engine).begin() as session:
        session.execute(update(Import).values(status="running", owner=dead.id))
    dead.close()
    assert wait_for_end(client, url, new_worker("finish")) == "succeeded"
