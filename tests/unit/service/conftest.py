"""A real installation in a temporary folder: SQLite, storage, and the API over HTTP."""

import io
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from fastapi.testclient import TestClient
from PIL import Image
from sqlalchemy import Engine

from service.api.app import create_app
from service.database import migrate
from service.database.engine import open_engine
from service.settings import Settings
from service.storage import Storage

_START_S = 30.0


class Pictures:
    """Real files, as bytes."""

    def frame(self, seed: int, *, width: int = 96, height: int = 64, kind: str = "PNG") -> bytes:
        pixels = np.random.default_rng(seed).integers(60, 200, (height, width), dtype=np.uint8)
        return self.encode(pixels, kind)

    def mask(self, *, width: int = 96, height: int = 64, value: int = 255) -> bytes:
        pixels = np.zeros((height, width), np.uint8)
        pixels[20:30, 40:60] = value
        return self.encode(pixels)

    def labelme(
        self, name: str, *, label: str = "scratch", width: int = 96, height: int = 64
    ) -> bytes:
        shape: dict[str, Any] = {
            "label": label,
            "shape_type": "polygon",
            "points": [[10, 10], [30, 10], [30, 20]],
            "group_id": None,
            "flags": {},
        }
        document: dict[str, Any] = {
            "version": "5.4.1",
            "flags": {},
            "shapes": [shape],
            "imagePath": name,
            "imageData": None,
            "imageWidth": width,
            "imageHeight": height,
        }
        return json.dumps(document).encode()

    def voc(self, *, label: str = "scratch", width: int = 96, height: int = 64) -> bytes:
        size = f"<size><width>{width}</width><height>{height}</height></size>"
        box = "<xmin>11</xmin><ymin>11</ymin><xmax>30</xmax><ymax>20</ymax>"
        found = f"<object><name>{label}</name><bndbox>{box}</bndbox></object>"
        return f"<annotation>{size}{found}</annotation>".encode()

    @staticmethod
    def encode(pixels: Any, kind: str = "PNG") -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, kind)
        return buffer.getvalue()


@pytest.fixture
def pictures() -> Pictures:
    return Pictures()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(storage_dir=tmp_path / "storage")


@pytest.fixture
def storage(settings: Settings) -> Storage:
    return Storage(settings.storage_dir)


@pytest.fixture
def engine(settings: Settings) -> Iterator[Engine]:
    engine = open_engine(settings)
    migrate.upgrade(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(settings)) as client:
        yield client


@pytest.fixture
def port(settings: Settings) -> Iterator[int]:
    """The API in a thread, where a real client reaches it."""
    server = uvicorn.Server(uvicorn.Config(create_app(settings), log_config=None))
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    deadline = time.monotonic() + _START_S
    while not server.started:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    yield listener.getsockname()[1]
    server.should_exit = True
    thread.join()
    listener.close()
