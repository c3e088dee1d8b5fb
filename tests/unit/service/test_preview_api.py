"""Previews over HTTP: kept on disk, drawn outside of the event loop, few at a time."""

import io
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import cv2
import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image

from service.api.app import create_app
from service.datasets import preview_store, previews
from service.settings import Settings


@pytest.fixture
def app(client: TestClient) -> FastAPI:
    app: FastAPI = client.app  # type: ignore[assignment]  # Starlette's own annotation is wider.
    return app


def _create(client: TestClient, *, classes: list[str], name: str = "rings") -> str:
    body = {"name": name, "task": "segmentation", "classes": classes}
    return str(client.post("/datasets", json=body).json()["id"])


def _send(client: TestClient, dataset: str, *files: tuple[str, bytes]) -> Any:
    parts = [("files", file) for file in files]
    answer = client.post(f"/datasets/{dataset}/images", files=parts)
    assert answer.status_code == 201, answer.text


def _paths(client: TestClient, dataset: str, kind: str) -> list[str]:
    items = client.get(f"/datasets/{dataset}/items").json()["items"]
    return [f"/datasets/{dataset}/items/{item['id']}/{kind}" for item in items]


@contextmanager
def _watched_drawing(
    monkeypatch: pytest.MonkeyPatch, watch: Callable[[], object]
) -> Iterator[list[int]]:
    """Let each drawing call ``watch`` first; yields the threads that drew."""
    threads: list[int] = []
    render = previews.render

    def watched(*arguments: Any, **named: Any) -> Any:
        threads.append(threading.get_ident())
        watch()
        return render(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(preview_store, "render", watched)
        yield threads


def _kept(settings: Settings) -> list[Path]:
    return list((settings.storage_dir / "previews").glob("*/*"))


def test_a_preview_is_drawn_once_even_over_a_restart(
    client: TestClient, settings: Settings, pictures: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = _create(client, classes=["pit"])
    _send(client, dataset, ("a.png", pictures.frame(1)))
    (path,) = _paths(client, dataset, "image")
    with _watched_drawing(monkeypatch, lambda: None) as drawn:
        first = client.get(f"{path}?max_side_px=48")
        with TestClient(create_app(settings)) as restarted:
            again = restarted.get(f"{path}?max_side_px=48")
        assert len(drawn) == 1
        # The frame has 96 px: whatever is asked beyond that is the same picture.
        for wanted in ("", "?max_side_px=96", "?max_side_px=5000"):
            assert client.get(path + wanted).status_code == 200
        assert len(drawn) == 2
    assert again.content == first.content
    assert again.headers["ETag"] == first.headers["ETag"]
    assert len(_kept(settings)) == 2


def test_a_preview_follows_its_label_and_its_data_sets_classes(
    client: TestClient, pictures: Any
) -> None:
    def mask(dataset: str) -> tuple[str, set[Any]]:
        (path,) = _paths(client, dataset, "mask")
        answer = client.get(f"{path}?format=png")
        pixels = np.asarray(Image.open(io.BytesIO(answer.content))).reshape(-1, 3)
        return answer.headers["ETag"], {tuple(pixel) for pixel in pixels.tolist()} - {(0, 0, 0)}

    first = _create(client, classes=["scratch", "pit"])
    swapped = _create(client, classes=["pit", "scratch"], name="swapped")
    for dataset in (first, swapped):
        _send(client, dataset, ("a.png", pictures.frame(1)), ("a.json", pictures.labelme("a.png")))
    (tag, colours), (other_tag, other_colours) = mask(first), mask(swapped)
    assert tag != other_tag
    assert (colours, other_colours) == ({(230, 159, 0)}, {(86, 180, 233)})
    (path,) = _paths(client, first, "label")
    assert client.delete(path).status_code == 204
    _send(client, first, ("a.json", pictures.labelme("a.png", label="pit")))
    assert mask(first) == (mask(first)[0], {(86, 180, 233)})
    assert mask(first)[0] != tag


@pytest.mark.parametrize("header", ['"x", {tag}', "W/{tag}", "*"])
def test_a_browser_that_has_the_picture_is_told_so(
    client: TestClient, pictures: Any, header: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = _create(client, classes=["pit"])
    _send(client, dataset, ("a.png", pictures.frame(1)))
    (path,) = _paths(client, dataset, "image")
    answer = client.get(path)
    assert answer.headers["Cache-Control"] == "private, no-cache"
    tag = answer.headers["ETag"]
    known = client.get(path, headers={"If-None-Match": header.format(tag=tag)})
    assert (known.status_code, known.content, known.headers["ETag"]) == (304, b"", tag)


def test_a_mask_is_drawn_from_its_labels_without_reading_the_frame(
    client: TestClient, app: FastAPI, pictures: Any
) -> None:
    dataset = _create(client, classes=["scratch"])
    _send(client, dataset, ("a.png", pictures.frame(1)), ("a.json", pictures.labelme("a.png")))
    item = client.get(f"/datasets/{dataset}/items").json()["items"][0]
    app.state.storage.blob_path(item["sha256"]).unlink()
    (mask,), (image,) = _paths(client, dataset, "mask"), _paths(client, dataset, "image")
    assert client.get(mask).status_code == 200
    assert client.get(image).json()["code"] == "storage_failed"


def test_a_sixteen_bit_thumbnail_is_stretched_by_the_levels_of_the_whole_frame(
    client: TestClient,
) -> None:
    pixels = np.full((64, 96), 1000, np.uint16)
    # Averaged away in the thumbnail, and still what white means.
    pixels[0, 0], pixels[0, 1] = 0, 4000
    dataset = _create(client, classes=["pit"])
    _send(client, dataset, ("a.png", cv2.imencode(".png", pixels)[1].tobytes()))
    (path,) = _paths(client, dataset, "image")
    answer = client.get(f"{path}?max_side_px=16&format=png")
    thumbnail = np.asarray(Image.open(io.BytesIO(answer.content)))
    assert set(thumbnail[2:, :].reshape(-1).tolist()) == {round(1000 * 255 / 4000)}


async def _answers_while_drawing(app: FastAPI, paths: list[str], meanwhile: Any) -> list[int]:
    """Ask for all previews at once, run ``meanwhile`` beside them, and return their statuses."""
    statuses: list[int] = []
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://hairline") as client:

        async def ask(path: str) -> None:
            statuses.append((await client.get(path)).status_code)

        async with anyio.create_task_group() as group:
            for path in paths:
                group.start_soon(ask, path)
            await meanwhile(client)
    return statuses


def test_other_requests_are_answered_while_previews_are_drawn(
    settings: Settings, pictures: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, may_go_on = threading.Event(), threading.Event()

    def hold() -> None:
        begun.set()
        assert may_go_on.wait(30)

    async def meanwhile(client: httpx.AsyncClient) -> None:
        await anyio.to_thread.run_sync(begun.wait, 30)
        # More previews are held up than there are threads for everything else.
        for path in ("/healthz", "/datasets", "/datasets?limit=1"):
            assert (await client.get(path)).status_code == 200
        may_go_on.set()

    with TestClient(create_app(settings)) as client:
        dataset = _create(client, classes=["pit"])
        _send(client, dataset, ("a.png", pictures.frame(1)))
        (path,) = _paths(client, dataset, "image")
    app = create_app(settings)
    paths = [f"{path}?max_side_px={side}" for side in range(16, 96)]
    with _watched_drawing(monkeypatch, hold) as threads:
        statuses = anyio.run(_answers_while_drawing, app, paths, meanwhile)
    assert statuses == [200] * 80
    assert threading.get_ident() not in threads
    app.state.engine.dispose()


def test_a_gallery_is_drawn_a_few_pictures_at_a_time(
    settings: Settings, pictures: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = threading.Lock()
    drawing, most = 0, 0
    render = previews.render

    def counted(*arguments: Any, **named: Any) -> Any:
        nonlocal drawing, most
        with lock:
            drawing += 1
            most = max(most, drawing)
        # Long enough for others to begin, if they may.
        threading.Event().wait(0.01)
        try:
            return render(*arguments, **named)
        finally:
            with lock:
                drawing -= 1

    async def nothing(_client: httpx.AsyncClient) -> None:
        await anyio.lowlevel.checkpoint()

    with TestClient(create_app(settings)) as client:
        dataset = _create(client, classes=["pit"])
        _send(client, dataset, *((f"{n}.png", pictures.frame(n)) for n in range(40)))
        paths = [f"{path}?max_side_px=32" for path in _paths(client, dataset, "image")]
    app = create_app(settings)
    monkeypatch.setattr(preview_store, "render", counted)
    assert anyio.run(_answers_while_drawing, app, paths, nothing) == [200] * 40
    assert most == 2
    app.state.engine.dispose()
