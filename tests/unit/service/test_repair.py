"""A stored file that was lost or damaged is whole again after the same file was uploaded."""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine

from data.storage import sha256_hex
from service.client import HairlineClient
from service.client.folder_upload import list_folder, upload_files
from service.datasets.imports import run_import
from service.settings import Settings
from service.storage import Storage

MISSING = "the stored file was missing and is restored"
DAMAGED = "the stored file was damaged and is restored"

Damage = Callable[[Path], object]


def flip_last_byte(path: Path) -> None:
    raw = path.read_bytes()
    path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))


DAMAGES = [
    pytest.param(Path.unlink, MISSING, id="removed"),
    pytest.param(flip_last_byte, DAMAGED, id="other bytes"),
    pytest.param(lambda path: path.write_bytes(b""), DAMAGED, id="emptied"),
]


def create(client: TestClient) -> str:
    body = {"name": "rings", "task": "segmentation", "classes": ["scratch"]}
    return str(client.post("/datasets", json=body).json()["id"])


def send(client: TestClient, dataset: str, files: dict[str, bytes]) -> Any:
    parts = [("files", file) for file in files.items()]
    answer = client.post(f"/datasets/{dataset}/images", files=parts)
    assert answer.status_code == 201, answer.text
    return answer.json()["files"]


def damage_all(storage: Storage, damage: Damage) -> dict[Path, bytes]:
    """Damage every blob and return what they were."""
    before = {p: p.read_bytes() for p in (storage.root / "blobs").rglob("*") if p.is_file()}
    for path in before:
        damage(path)
    return before


def are_whole(blobs: dict[Path, bytes]) -> bool:
    return all(path.read_bytes() == raw == _named(path, raw) for path, raw in blobs.items())


def _named(path: Path, raw: bytes) -> bytes | None:
    return raw if path.name == sha256_hex(raw) else None


def import_archive(
    client: TestClient, engine: Engine, settings: Settings, dataset: str, files: dict[str, bytes]
) -> Any:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    answer = client.put(f"/datasets/{dataset}/archive", content=buffer.getvalue())
    queued = answer.json()["import"]["id"]
    run_import(engine, Storage(settings.storage_dir), settings, queued)
    return client.get(answer.headers["Location"]).json()


@pytest.mark.parametrize(("damage", "note"), DAMAGES)
def test_uploading_a_frame_and_its_mask_again_restores_them_for_every_reader(
    client: TestClient, storage: Storage, pictures: Any, damage: Damage, note: str
) -> None:
    dataset = create(client)
    # The last byte of a PNG is that of a checksum: the picture itself would still decode.
    files = {"images/a.png": pictures.frame(1), "masks/a.png": pictures.mask()}
    send(client, dataset, files)
    wish = {"split": {"train": 1, "calibration": 0, "test": 0}}
    version = client.post(f"/datasets/{dataset}/versions", json=wish).json()["id"]

    def unreadable() -> set[str]:
        report = client.get(f"/versions/{version}/health?wait_s=30").json()
        return {f["code"] for f in report["findings"] if f["code"].startswith("unreadable")}

    def item() -> Any:
        return client.get(f"/datasets/{dataset}/items").json()["items"][0]

    overlay = f"/datasets/{dataset}/items/{item()['id']}/overlay"
    assert (unreadable(), item()["is_stored"]) == (set(), True)
    blobs = damage_all(storage, damage)
    assert unreadable() == {"unreadable_frames", "unreadable_labels"}
    assert item()["is_stored"] is False
    assert client.get(overlay).status_code != 200

    again = send(client, dataset, files)

    assert [(file["outcome"], file["notes"]) for file in again] == [("known", [note])] * 2
    assert are_whole(blobs)
    assert (unreadable(), item()["is_stored"]) == (set(), True)
    assert client.get(overlay).status_code == 200
    assert [file["notes"] for file in send(client, dataset, files)] == [[], []]


@pytest.mark.parametrize(("damage", "note"), DAMAGES)
def test_importing_an_archive_again_restores_frames_and_the_masks_made_from_its_own(
    client: TestClient,
    engine: Engine,
    storage: Storage,
    settings: Settings,
    pictures: Any,
    damage: Damage,
    note: str,
) -> None:
    dataset = create(client)
    files = {
        "cable/train/good/0.png": pictures.frame(0),
        "cable/test/good/0.png": pictures.frame(1),
        "cable/test/scratch/0.png": pictures.frame(2),
        "cable/ground_truth/scratch/0_mask.png": pictures.mask(),
    }
    first = import_archive(client, engine, settings, dataset, files)
    assert first["status"] == "succeeded"
    blobs = damage_all(storage, damage)
    assert len(blobs) == 5

    again = import_archive(client, engine, settings, dataset, files)

    assert again["status"] == "succeeded"
    told = [line for line in again["layout"]["notes"] if line.endswith(note)]
    assert sorted(told) == sorted(f"{name}: {note}" for name in files)
    assert are_whole(blobs)


@pytest.mark.parametrize(("damage", "note"), DAMAGES)
def test_a_coco_file_again_restores_the_masks_that_were_made_of_it(
    client: TestClient, storage: Storage, pictures: Any, damage: Damage, note: str
) -> None:
    dataset = create(client)
    frames = {"a.png": pictures.frame(0)}
    masked = {"size": [64, 96], "counts": [100, 7, 96 * 64 - 107]}
    annotation = {"image_id": 0, "category_id": 5, "iscrowd": 1, "segmentation": masked}
    document = {
        "images": [{"id": 0, "file_name": "a.png", "width": 96, "height": 64}],
        "categories": [{"id": 5, "name": "scratch"}],
        "annotations": [annotation],
    }
    labels = {"all.json": json.dumps(document).encode()}
    send(client, dataset, frames | labels)
    blobs = damage_all(storage, damage)
    assert len(blobs) == 3

    (outcome,) = send(client, dataset, labels)

    assert (outcome["outcome"], outcome["notes"]) == ("known", [note])
    send(client, dataset, frames)
    assert are_whole(blobs)


def test_a_damaged_file_that_another_data_set_left_is_replaced_and_told(
    client: TestClient, storage: Storage, pictures: Any
) -> None:
    frame = {"a.png": pictures.frame(1)}
    send(client, create(client), frame)
    blobs = damage_all(storage, flip_last_byte)
    body = {"name": "other", "task": "segmentation"}
    other = client.post("/datasets", json=body).json()["id"]
    (outcome,) = send(client, other, frame)
    assert (outcome["outcome"], outcome["notes"]) == ("accepted", [DAMAGED])
    assert are_whole(blobs)


def test_a_folder_uploaded_again_sends_the_frames_that_storage_has_lost(
    port: int, client: TestClient, storage: Storage, pictures: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    frames = [pictures.frame(seed) for seed in range(4)]
    for number, frame in enumerate(frames):
        (folder / f"{number}.png").write_bytes(frame)
    removed, changed = (storage.blob_path(sha256_hex(frame)) for frame in frames[:2])
    with HairlineClient(f"http://127.0.0.1:{port}") as hairline:
        dataset = hairline.create_dataset("rings", classes=["scratch"]).id
        upload_files(hairline, dataset, list_folder(folder))
        body = {"split": {"train": 1, "calibration": 0, "test": 0}, "unlabelled": "good"}
        version = client.post(f"/datasets/{dataset}/versions", json=body).json()["id"]
        removed.unlink()
        flip_last_byte(changed)
        # Bytes that changed in a file of the right size are known once a report has read it.
        client.get(f"/versions/{version}/health?wait_s=30")
        lost = [item.name for item in hairline.items(dataset) if not item.is_stored]
        assert lost == ["0.png", "1.png"]

        done = upload_files(hairline, dataset, list_folder(folder))

        assert (done.accepted, done.known, done.rejected) == (0, 4, ())
        assert all(item.is_stored for item in hairline.items(dataset))
    assert [removed.read_bytes(), changed.read_bytes()] == frames[:2]
