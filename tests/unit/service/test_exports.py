"""A version goes out over HTTP, comes in as another data set's archive, and is the same version."""

import io
import tarfile
from collections.abc import Callable
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine

from service.datasets.imports import run_import
from service.settings import Settings
from service.storage import Storage

CLASSES = ["scratch", "Riß & pit"]
SPLIT = {"group_pattern": r"part(\d)", "train": 0.5, "calibration": 0.25, "test": 0.25, "seed": 3}

Files = list[tuple[str, bytes]]


def _create(client: TestClient, name: str) -> str:
    body = {"name": name, "task": "detection", "classes": CLASSES}
    return str(client.post("/datasets", json=body).json()["id"])


def _freeze(client: TestClient, dataset: str) -> Any:
    answer = client.post(f"/datasets/{dataset}/versions", json={"split": SPLIT})
    assert answer.status_code == 201, answer.text
    return answer.json()


def _mask(pictures: Any, frame: str, seed: int) -> tuple[str, bytes]:
    return frame.replace("/images/", "/masks/"), pictures.mask(value=seed % 3)


def _outline(pictures: Any, frame: str, seed: int) -> tuple[str, bytes]:
    return frame.replace(".png", ".json"), pictures.labelme("x", label=CLASSES[seed % 2])


def _box(pictures: Any, frame: str, seed: int) -> tuple[str, bytes]:
    # Thirds of a pixel, which have no end as decimals, nor as parts of the frame.
    places = f"{1 / 3 + seed / 96} {1 / 7 + seed / 64} {1 / 9} {1 / 11}"
    label = f"{seed % 2} {places}\n" if seed % 3 else ""
    return frame.replace("/images/", "/labels/").replace(".png", ".txt"), label.encode()


def _either(pictures: Any, frame: str, seed: int) -> tuple[str, bytes]:
    return (_box if seed % 2 else _outline)(pictures, frame, seed)


@pytest.mark.parametrize(
    ("form", "label", "unfit"),
    [
        ("coco", _either, "labelme"),
        ("labelme", _outline, "voc"),
        ("masks", _mask, "coco"),
        ("voc", _box, "labelme"),
        ("yolo", _either, "voc"),
    ],
)
def test_an_export_imported_again_is_the_same_version(
    client: TestClient,
    pictures: Any,
    engine: Engine,
    settings: Settings,
    form: str,
    label: Callable[[Any, str, int], tuple[str, bytes]],
    unfit: str,
) -> None:
    dataset = _create(client, "original")
    for seed in range(8):
        frame = f"lot {seed % 2}.ä/images/part{seed // 2}_{seed}.png"
        picture = pictures.frame(seed)
        files: Files = [(frame, picture), label(pictures, frame, seed)]
        parts = [("files", file) for file in files]
        answer = client.post(f"/datasets/{dataset}/images", files=parts)
        assert answer.status_code == 201, answer.text
    version = _freeze(client, dataset)

    export = client.get(f"/versions/{version['id']}/export?format={form}")
    assert export.status_code == 200
    assert export.headers["content-type"] == "application/x-tar"
    assert int(export.headers["content-length"]) == len(export.content)
    refused = client.get(f"/versions/{version['id']}/export?format={unfit}")
    assert (refused.status_code, refused.json()["code"]) == (422, "export_unfit")
    assert form in refused.json()["hint"]

    copy = _create(client, "copy")
    queued = client.put(f"/datasets/{copy}/archive", content=export.content)
    run_import(engine, Storage(settings.storage_dir), settings, queued.json()["import"]["id"])
    ended = client.get(queued.headers["Location"]).json()
    assert (ended["status"], ended["rejected"]) == ("succeeded", [])
    assert _freeze(client, copy)["digest"] == version["digest"]


def test_an_unknown_format_is_refused_with_those_there_are(
    client: TestClient, pictures: Any
) -> None:
    dataset = _create(client, "original")
    for seed in range(3):
        parts = [("files", (f"part{seed}.png", pictures.frame(seed)))]
        parts.append(("files", (f"part{seed}.json", pictures.labelme("x"))))
        client.post(f"/datasets/{dataset}/images", files=parts)
    version = _freeze(client, dataset)["id"]
    refused = client.get(f"/versions/{version}/export?format=tfrecord")
    assert (refused.status_code, refused.json()["where"]) == (422, "query/format")
    assert "'coco', 'labelme', 'masks', 'voc' or 'yolo'" in refused.json()["detail"]
    for form in ("coco", "labelme", "yolo"):
        export = client.get(f"/versions/{version}/export?format={form}").content
        with tarfile.open(fileobj=io.BytesIO(export)) as archive:
            assert "part0.png" in archive.getnames()
