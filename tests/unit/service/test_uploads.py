import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine, func, select

from data.errors import LayoutError
from service.database.engine import session_factory
from service.database.tables import Item, Label
from service.datasets.incoming import IncomingFile, upload_order
from service.datasets.repository import create_dataset
from service.datasets.upload_conflicts import rejected
from service.datasets.uploads import Uploads
from service.settings import Settings
from service.storage import Storage


def _create(client: TestClient, classes: list[str] | None = None, *, name: str = "rings") -> str:
    body = {"name": name, "task": "segmentation", "classes": classes}
    answer = client.post("/datasets", json=body)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def _send(client: TestClient, dataset: str, *files: tuple[str, bytes]) -> Any:
    parts = [("files", file) for file in files]
    return client.post(f"/datasets/{dataset}/images", files=parts)


def _outcomes(answer: Any) -> list[tuple[str, str | None]]:
    return [(file["outcome"], file["code"]) for file in answer.json()["files"]]


def _counts(client: TestClient, dataset: str) -> dict[str, int]:
    counts: dict[str, int] = client.get(f"/datasets/{dataset}").json()["counts"]
    return counts


def test_frames_and_labels_pair_whatever_the_order_they_are_sent_in(
    client: TestClient, pictures: Any
) -> None:
    dataset = _create(client)
    answer = _send(
        client,
        dataset,
        ("train/masks/a_mask.png", pictures.mask()),
        ("train/images/a.png", pictures.frame(1)),
    )
    assert answer.status_code == 201
    assert [file["file"] for file in answer.json()["files"]] == [
        "train/masks/a_mask.png",
        "train/images/a.png",
    ]
    assert answer.json()["counts"] == {"accepted": 2}
    assert answer.json()["files"][0]["item"] == answer.json()["files"][1]["item"]
    assert _counts(client, dataset)["labelled"] == 1


def test_the_same_files_again_are_known_and_change_nothing(
    client: TestClient, pictures: Any
) -> None:
    dataset = _create(client, ["scratch"])
    files = [("a.png", pictures.frame(1)), ("a.json", pictures.labelme("a.png"))]
    _send(client, dataset, *files)
    again = _send(client, dataset, *files)
    assert again.status_code == 201
    assert _outcomes(again) == [("known", None), ("known", None)]
    assert _counts(client, dataset)["items"] == 1


def test_the_good_files_beside_a_bad_one_are_kept_and_all_outcomes_are_told(
    client: TestClient, pictures: Any
) -> None:
    dataset = _create(client)
    answer = _send(
        client,
        dataset,
        ("a.png", pictures.frame(1)),
        ("b.png", b"no picture"),
        ("c.png", pictures.frame(3)),
    )
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert [file["outcome"] for file in problem["files"]] == ["accepted", "rejected", "accepted"]
    assert problem["file"] == "b.png"
    assert problem["hint"]
    assert _counts(client, dataset)["items"] == 2


def test_the_same_picture_under_another_name_is_rejected(client: TestClient, pictures: Any) -> None:
    dataset = _create(client)
    answer = _send(client, dataset, ("a.png", pictures.frame(1)), ("b.png", pictures.frame(1)))
    assert _outcomes(answer) == [("accepted", None), ("rejected", "duplicate_content")]


@pytest.mark.parametrize("other", ["a.png", "a.bmp", "images/a.png"])
def test_another_picture_under_a_name_that_pairs_alike_is_rejected(
    client: TestClient, pictures: Any, other: str
) -> None:
    dataset = _create(client)
    kind = "BMP" if other.endswith("bmp") else "PNG"
    answer = _send(
        client, dataset, ("a.png", pictures.frame(1)), (other, pictures.frame(2, kind=kind))
    )
    assert _outcomes(answer) == [("accepted", None), ("rejected", "duplicate_name")]


def test_a_label_is_replaced_only_after_it_was_deleted(client: TestClient, pictures: Any) -> None:
    dataset = _create(client, ["scratch", "pit"])
    _send(client, dataset, ("a.png", pictures.frame(1)), ("a.json", pictures.labelme("a.png")))
    corrected = ("a.json", pictures.labelme("a.png", label="pit"))
    refused = _send(client, dataset, corrected)
    assert _outcomes(refused) == [("rejected", "duplicate_name")]
    delete, path = refused.json()["hint"].rpartition("DELETE ")[1:]
    assert delete == "DELETE "
    assert client.delete(path).status_code == 204
    assert _outcomes(_send(client, dataset, corrected)) == [("accepted", None)]
    assert client.get(f"/datasets/{dataset}").json()["class_counts"] == {"pit": 1}


def test_a_yolo_file_needs_its_frame_and_the_classes(client: TestClient, pictures: Any) -> None:
    label = ("labels/a.txt", b"1 0.5 0.5 0.25 0.5")
    frame = ("images/a.png", pictures.frame(1))
    undeclared = _create(client)
    assert _outcomes(_send(client, undeclared, frame, label)) == [
        ("accepted", None),
        ("rejected", "label_classes_needed"),
    ]
    dataset = _create(client, ["spur", "short"], name="declared")
    assert _outcomes(_send(client, dataset, label)) == [("rejected", "label_frame_needed")]
    # Frames are taken first, whatever the order.
    assert _outcomes(_send(client, dataset, label, frame)) == [("accepted", None)] * 2
    (item,) = client.get(f"/datasets/{dataset}/items").json()["items"]
    assert item["label"]["classes"] == {"short": 1}
    assert (item["label"]["width"], item["label"]["height"]) == (96, 64)


def test_a_label_may_come_before_its_frame_and_waits(client: TestClient, pictures: Any) -> None:
    dataset = _create(client)
    _send(client, dataset, ("masks/a.png", pictures.mask()))
    assert _counts(client, dataset)["labels_without_image"] == 1
    assert client.get(f"/datasets/{dataset}").json()["problems"][0]["code"] == "label_without_image"
    _send(client, dataset, ("images/a.png", pictures.frame(1)))
    assert _counts(client, dataset) == {
        "items": 1,
        "labelled": 1,
        "unlabelled": 0,
        "labels_without_image": 0,
    }


@pytest.mark.parametrize("frame_first", [True, False])
def test_of_a_frame_and_a_label_of_other_sizes_the_later_is_rejected_and_not_stored(
    client: TestClient, storage: Storage, pictures: Any, frame_first: bool
) -> None:
    dataset = _create(client)
    files = [("images/a.png", pictures.frame(1)), ("masks/a.png", pictures.mask(width=100))]
    first, second = files if frame_first else reversed(files)
    assert _outcomes(_send(client, dataset, first)) == [("accepted", None)]
    assert _outcomes(_send(client, dataset, second)) == [("rejected", "label_size_mismatch")]
    blobs = [path for path in (storage.root / "blobs").rglob("*") if path.is_file()]
    assert len(blobs) == 1


def test_masks_of_many_values_need_declared_classes(client: TestClient, pictures: Any) -> None:
    dataset = _create(client)
    answer = _send(client, dataset, ("masks/a.png", pictures.mask(value=3)))
    problem = answer.json()
    assert problem["code"] == "mask_value"
    assert problem["where"] == "pixel (x=40, y=20)"
    assert "declares no classes" in problem["detail"]


def test_a_file_above_the_size_limit_is_rejected(tmp_path: Path, pictures: Any) -> None:
    from service.api.app import create_app

    small = Settings(storage_dir=tmp_path, max_file_bytes=1000)
    with TestClient(create_app(small)) as client:
        answer = _send(client, _create(client), ("a.png", pictures.frame(1)))
    assert _outcomes(answer) == [("rejected", "file_too_large")]


def test_a_request_of_too_many_files_keeps_none(tmp_path: Path, pictures: Any) -> None:
    from service.api.app import create_app

    small = Settings(storage_dir=tmp_path, max_files_per_request=2)
    with TestClient(create_app(small)) as client:
        dataset = _create(client)
        files = [(f"{seed}.png", pictures.frame(seed)) for seed in range(3)]
        answer = _send(client, dataset, *files)
        assert (answer.status_code, answer.json()["code"]) == (413, "too_many_files")
        assert _send(client, dataset, *files[:2]).json()["counts"] == {"accepted": 2}


@pytest.mark.parametrize("name", ["../a.png", "/etc/a.png", "a\\b.png", "C:/a.png", "x" * 400])
def test_a_name_that_could_leave_its_folder_is_rejected(
    client: TestClient, pictures: Any, name: str
) -> None:
    answer = _send(client, _create(client), (name, pictures.frame(1)))
    assert _outcomes(answer) == [("rejected", "unsafe_name")]
    assert len(answer.json()["file"]) <= 300


def test_a_form_without_files_says_what_is_expected(client: TestClient) -> None:
    dataset = _create(client)
    empty = client.post(f"/datasets/{dataset}/images", json={})
    assert (empty.status_code, empty.json()["code"]) == (422, "no_files")
    named = client.post(f"/datasets/{dataset}/images", files={"picture": ("a.png", b"x")})
    assert (named.status_code, named.json()["code"]) == (422, "unexpected_part")
    garbled = client.post(
        f"/datasets/{dataset}/images",
        content=b"--x\r\nbroken",
        headers={"Content-Type": "multipart/form-data; boundary=x"},
    )
    assert 400 <= garbled.status_code < 500
    assert garbled.json()["code"]


def test_files_for_an_unknown_data_set_are_refused(client: TestClient, pictures: Any) -> None:
    answer = _send(client, "ds_none", ("a.png", pictures.frame(1)))
    assert (answer.status_code, answer.json()["code"]) == (404, "dataset_not_found")


def test_the_conversions_that_were_made_are_told(client: TestClient, pictures: Any) -> None:
    answer = _send(client, _create(client), ("a.png", pictures.frame(1, kind="BMP")))
    (file,) = answer.json()["files"]
    assert file["notes"] == ["named .png but is BMP; read as BMP"]


def _incoming(name: str, content: bytes) -> IncomingFile:
    import io

    return IncomingFile(name, lambda: io.BytesIO(content))


def _dataset(engine: Engine) -> str:
    with session_factory(engine).begin() as session:
        return create_dataset(session, name="rings", task="segmentation", classes=None).id


def _rows(engine: Engine, table: Any) -> int:
    with session_factory(engine, writes=False)() as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


def test_two_uploads_of_the_same_files_at_once_make_one_row_each(
    engine: Engine, storage: Storage, settings: Settings, pictures: Any
) -> None:
    dataset = _dataset(engine)
    files = [
        _incoming("images/a.png", pictures.frame(1)),
        _incoming("masks/a.png", pictures.mask()),
    ]

    def upload(_: int) -> list[str]:
        uploads = Uploads(engine, storage, settings, dataset)
        return [outcome.outcome for outcome in uploads.accept_all(files)]

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(upload, range(8)))
    assert sorted(frame for frame, _ in outcomes) == ["accepted"] + ["known"] * 7
    assert sorted(mask for _, mask in outcomes) == ["accepted"] + ["known"] * 7
    assert (_rows(engine, Item), _rows(engine, Label)) == (1, 1)


def test_different_pictures_under_one_name_at_once_leave_one_winner(
    engine: Engine, storage: Storage, settings: Settings, pictures: Any
) -> None:
    uploads = Uploads(engine, storage, settings, _dataset(engine))
    with ThreadPoolExecutor(6) as pool:
        outcomes = list(
            pool.map(
                lambda seed: uploads.accept(_incoming("a.png", pictures.frame(seed))), range(6)
            )
        )
    assert sorted(outcome.code or "" for outcome in outcomes) == [""] + ["duplicate_name"] * 5


_KILLED_BEFORE_THE_ROW = """
import io, os, signal, sys
from pathlib import Path
from sqlalchemy import event
from service.database.engine import open_engine
from service.datasets.incoming import IncomingFile
from service.datasets.uploads import Uploads
from service.settings import Settings
from service.storage import Storage

settings = Settings(storage_dir=Path(sys.argv[1]))
engine = open_engine(settings)

def kill(connection, cursor, statement, *rest):
    if statement.startswith("INSERT INTO items"):
        os.kill(os.getpid(), signal.SIGKILL)

event.listen(engine, "after_cursor_execute", kill)
uploads = Uploads(engine, Storage(settings.storage_dir), settings, sys.argv[2])
uploads.accept(IncomingFile("a.png", lambda: io.BytesIO(Path(sys.argv[3]).read_bytes())))
"""


def test_a_kill_between_blob_and_row_is_healed_by_sending_the_file_again(
    engine: Engine, storage: Storage, settings: Settings, pictures: Any, tmp_path: Path
) -> None:
    dataset = _dataset(engine)
    content = pictures.frame(1)
    (tmp_path / "a.png").write_bytes(content)
    command = [sys.executable, "-c", _KILLED_BEFORE_THE_ROW]
    killed = subprocess.run(
        [*command, settings.storage_dir, dataset, tmp_path / "a.png"], check=False
    )
    assert killed.returncode == -signal.SIGKILL
    assert sum(path.is_file() for path in (storage.root / "blobs").rglob("*")) == 1
    assert _rows(engine, Item) == 0

    outcome = Uploads(engine, storage, settings, dataset).accept(_incoming("a.png", content))
    assert outcome.outcome == "accepted"
    assert _rows(engine, Item) == 1


def test_frames_come_before_labels_and_unreadable_names_last() -> None:
    assert upload_order(["a.json", "a.jpg", "x.txt", "masks/b.png", "b.tif"]) == [1, 4, 0, 2, 3]


def test_every_rejection_names_a_place() -> None:
    outcome = rejected("a.png", LayoutError("unsafe_name", "The file name is empty."))
    assert outcome.where == "file name"
