"""Ten kinds of broken input against the running service: each is refused with its file, its place
and its remedy, and the good files beside it are kept.
"""

import io
import itertools
import json
import signal
import socket
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from data.synthetic import draw_frame

# Two processes import torch on a machine that may be busy with other tests.
START_S = 180.0
WIDTH, HEIGHT = 320, 256
_names = itertools.count()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the service keeps its storage and its log."""
    return tmp_path_factory.mktemp("service")


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[httpx.Client]:
    """`hairline serve` in a process of its own, over an empty storage."""
    program = [sys.executable, "-m", "service.cli", "serve", "--port", "0"]
    with (
        (folder / "log.txt").open("wb") as log,
        subprocess.Popen(
            [*program, "--storage", folder / "storage"],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        try:
            url = process.stdout.readline().split()[-1]
            with httpx.Client(base_url=url, timeout=60) as client:
                _wait_until_ready(client)
                yield client
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        finally:
            # Leaving the block waits for the process, which must not outlive a failure.
            process.kill()


def _wait_until_ready(client: httpx.Client) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        try:
            if client.get("/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    pytest.fail("the service did not become ready")


@dataclass(frozen=True)
class Sample:
    """A drawn frame with its mask and its outline."""

    image: bytes
    mask: bytes
    labelme: bytes


def _encode(pixels: Any, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def _sample(seed: int, kind: str = "PNG") -> Sample:
    frame = draw_frame(seed, width_px=WIDTH, height_px=HEIGHT)
    outline = [[10.0, 10.0], [60.0, 10.0], [60.0, 30.0]]
    return Sample(_encode(frame.pixels, kind), _encode(frame.mask), _labelme(outline, "scratch"))


def _labelme(points: list[list[float]], label: str) -> bytes:
    document: dict[str, Any] = {
        "version": "5.4.1",
        "flags": {},
        "shapes": [{"label": label, "shape_type": "polygon", "points": points}],
        "imagePath": "x.png",
        "imageData": None,
        "imageWidth": WIDTH,
        "imageHeight": HEIGHT,
    }
    return json.dumps(document).encode()


def _create(service: httpx.Client) -> str:
    body = {
        "name": f"set {next(_names)}",
        "task": "segmentation",
        "classes": ["scratch", "pit", "stain"],
    }
    answer = service.post("/datasets", json=body)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def _send(service: httpx.Client, dataset: str, files: dict[str, bytes]) -> httpx.Response:
    parts = [("files", (name, content)) for name, content in files.items()]
    return service.post(f"/datasets/{dataset}/images", files=parts)


def _assert_problem(answer: httpx.Response, *, code: str, file: str, where: str) -> None:
    """The answer is a client error that says which file, where, and what to do."""
    assert 400 <= answer.status_code < 500
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert (problem["code"], problem["file"], problem["where"]) == (code, file, where)
    assert len(problem["hint"]) > 10
    assert len(problem["detail"]) > 10
    assert problem["request_id"].startswith("req_")


def _assert_good_kept(service: httpx.Client, dataset: str, items: int, labelled: int) -> None:
    """The data set holds exactly the good files."""
    counts = service.get(f"/datasets/{dataset}").json()["counts"]
    assert (counts["items"], counts["labelled"]) == (items, labelled)


def _png_header_only(width: int, height: int) -> bytes:
    def chunk(kind: bytes, payload: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + payload))
        return struct.pack(">I", len(payload)) + kind + payload + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 1000)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", data), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


GOOD = _sample(1)


@pytest.mark.parametrize(
    ("name", "content", "code", "where"),
    [
        pytest.param(
            "images/bad.jpg",
            _sample(2, "JPEG").image[:-3000],
            "image_damaged",
            "whole file",
            id="truncated JPEG",
        ),
        pytest.param(
            "images/bad.png",
            _encode(np.zeros((1, 1), np.uint8)),
            "image_too_small",
            "whole file",
            id="1x1 image",
        ),
        pytest.param(
            "images/bad.png",
            _png_header_only(40_000, 40_000),
            "image_too_large",
            "whole file",
            id="40,000x40,000 header",
        ),
        pytest.param(
            "images/bad.png",
            b"Dear colleague,\nthe pictures are on the server.\n",
            "image_unknown_format",
            "whole file",
            id="text file called .png",
        ),
    ],
)
def test_a_picture_that_is_none_is_refused_beside_a_good_one(
    service: httpx.Client, name: str, content: bytes, code: str, where: str
) -> None:
    dataset = _create(service)
    files = {"images/good.png": GOOD.image, name: content, "masks/good.png": GOOD.mask}
    answer = _send(service, dataset, files)
    _assert_problem(answer, code=code, file=name, where=where)
    outcomes = {file["file"]: file["outcome"] for file in answer.json()["files"]}
    assert outcomes == {
        "images/good.png": "accepted",
        name: "rejected",
        "masks/good.png": "accepted",
    }
    _assert_good_kept(service, dataset, items=1, labelled=1)


@pytest.mark.parametrize(
    ("name", "content", "code", "where"),
    [
        pytest.param(
            "masks/other.png",
            _encode(np.zeros((HEIGHT, WIDTH - 1), np.uint8)),
            "label_size_mismatch",
            "whole file",
            id="mask of another size",
        ),
        pytest.param(
            "other.json",
            _labelme([[10, 10], [WIDTH + 5, 10], [20, 20]], "scratch"),
            "polygon_outside_frame",
            "/shapes/0/points/1",
            id="polygon outside the frame",
        ),
        pytest.param(
            "other.json",
            _labelme([[10, 10], [50, 10], [20, 20]], "rust"),
            "unknown_class",
            "/shapes/0/label",
            id="unknown class",
        ),
    ],
)
def test_a_label_that_cannot_be_meant_is_refused_and_its_frame_is_kept(
    service: httpx.Client, name: str, content: bytes, code: str, where: str
) -> None:
    dataset = _create(service)
    files = {
        "good.png": GOOD.image,
        "good.json": GOOD.labelme,
        "other.png": _sample(3).image,
        name: content,
    }
    answer = _send(service, dataset, files)
    _assert_problem(answer, code=code, file=name, where=where)
    _assert_good_kept(service, dataset, items=2, labelled=1)
    correct = _send(service, dataset, {"other.json": GOOD.labelme})
    assert correct.status_code == 201
    _assert_good_kept(service, dataset, items=2, labelled=2)


def test_two_pictures_of_one_name_are_told_apart(service: httpx.Client) -> None:
    dataset = _create(service)
    parts = [("files", ("images/good.png", GOOD.image)), ("files", ("masks/good.png", GOOD.mask))]
    parts.append(("files", ("images/good.png", _sample(4).image)))
    answer = service.post(f"/datasets/{dataset}/images", files=parts)
    _assert_problem(answer, code="duplicate_name", file="images/good.png", where="file name")
    outcomes = [file["outcome"] for file in answer.json()["files"]]
    assert outcomes == ["accepted", "accepted", "rejected"]
    _assert_good_kept(service, dataset, items=1, labelled=1)


def test_an_empty_archive_is_refused_and_the_data_set_is_untouched(service: httpx.Client) -> None:
    dataset = _create(service)
    _send(service, dataset, {"good.png": GOOD.image, "good.json": GOOD.labelme})
    buffer = io.BytesIO()
    zipfile.ZipFile(buffer, "w").close()
    answer = service.put(f"/datasets/{dataset}/archive", content=buffer.getvalue())
    _assert_problem(answer, code="archive_empty", file="archive", where="whole file")
    _assert_good_kept(service, dataset, items=1, labelled=1)


def test_a_frame_without_mask_stops_the_version_and_nothing_is_lost(service: httpx.Client) -> None:
    dataset = _create(service)
    files = {f"images/{seed}.png": _sample(seed).image for seed in range(10, 15)}
    files |= {f"masks/{seed}.png": _sample(seed).mask for seed in range(10, 14)}
    assert _send(service, dataset, files).status_code == 201
    answer = service.post(f"/datasets/{dataset}/versions", json={})
    item = service.get(f"/datasets/{dataset}/items?labelled=false").json()["items"][0]["id"]
    _assert_problem(answer, code="missing_label", file="images/14.png", where=f"item {item}")
    _assert_good_kept(service, dataset, items=5, labelled=4)
    assert _send(service, dataset, {"masks/14.png": _sample(14).mask}).status_code == 201
    frozen = service.post(f"/datasets/{dataset}/versions", json={})
    assert frozen.status_code == 201
    assert frozen.json()["statistics"]["frames"] == 5


def test_broken_files_in_an_archive_are_listed_and_the_good_ones_imported(
    service: httpx.Client,
) -> None:
    dataset = _create(service)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("masks/good.png", GOOD.mask)
        archive.writestr("images/good.png", GOOD.image)
        archive.writestr("images/bad.jpg", _sample(2, "JPEG").image[:-3000])
        archive.writestr("images/bad.png", b"text")
    answer = service.put(f"/datasets/{dataset}/archive", content=buffer.getvalue())
    assert answer.status_code == 202
    state = _ended(service, answer.headers["Location"])
    assert state["status"] == "succeeded_with_problems"
    rejected = [(file["file"], file["code"]) for file in state["rejected"]]
    assert rejected == [
        ("images/bad.jpg", "image_damaged"),
        ("images/bad.png", "image_unknown_format"),
    ]
    assert all(file["where"] and file["hint"] for file in state["rejected"])
    _assert_good_kept(service, dataset, items=1, labelled=1)


def test_an_archive_whose_sender_goes_away_leaves_nothing(
    service: httpx.Client, folder: Path
) -> None:
    dataset = _create(service)
    spool = folder / "storage" / "spool"
    head = (
        f"PUT /datasets/{dataset}/archive HTTP/1.1\r\nHost: localhost\r\n"
        "Content-Length: 10000000\r\n\r\n"
    )
    address = (service.base_url.host, service.base_url.port or 80)
    with socket.create_connection(address, timeout=60) as connection:
        connection.sendall(head.encode() + b"PK\x03\x04" + b"x" * 100_000)
        _wait_until(lambda: any(path.stat().st_size for path in spool.glob("*.part")))
    _wait_until(lambda: list(spool.iterdir()) == [])
    assert service.get("/healthz").status_code == 200
    assert "Traceback" not in (folder / "log.txt").read_text()


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _ended(service: httpx.Client, location: str) -> dict[str, Any]:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        state: dict[str, Any] = service.get(location).json()
        if state["status"] not in {"queued", "running"}:
            return state
        time.sleep(0.1)
    pytest.fail(f"the import did not end: {state}")
