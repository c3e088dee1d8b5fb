import io
import json
import time
import zipfile
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine, update

from service.database.engine import session_factory
from service.database.tables import Import
from service.datasets.imports import clear_archives, run_import
from service.settings import Settings
from service.storage import Storage

YAML = b"names: [spur, short]"
LABEL = b"1 0.5 0.5 0.25 0.5\n"


def pack(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


class Importer:
    """Creates data sets and takes archives into them."""

    def __init__(
        self, client: TestClient, engine: Engine, storage: Storage, settings: Settings
    ) -> None:
        self.client = client
        self._parts = (engine, storage, settings)

    def run(self, files: dict[str, bytes], layout: str | None = None, **dataset: Any) -> Any:
        body = {"name": f"set {layout} {dataset}", "task": "segmentation"} | dataset
        self.dataset = self.client.post("/datasets", json=body).json()["id"]
        query = {} if layout is None else {"layout": layout}
        path = f"/datasets/{self.dataset}/archive"
        answer = self.client.put(path, content=pack(files), params=query)
        assert answer.status_code == 202, answer.json()
        self.finish(answer.json()["import"]["id"])
        return self.client.get(answer.headers["Location"]).json()

    def finish(self, import_id: str) -> None:
        run_import(*self._parts, import_id)

    def items(self) -> Any:
        return self.client.get(f"/datasets/{self.dataset}/items").json()["items"]


@pytest.fixture
def importer(client: TestClient, engine: Engine, storage: Storage, settings: Settings) -> Importer:
    return Importer(client, engine, storage, settings)


@pytest.fixture
def yolo(pictures: Any) -> dict[str, bytes]:
    frame = {"images/a.png": pictures.frame(0)}
    return {"data.yaml": YAML, "labels/a.txt": LABEL} | frame


@pytest.mark.parametrize("classes", [None, ["short", "spur"]])
def test_a_yolo_archive_says_what_it_was_taken_for_and_numbers_classes_as_its_data_yaml(
    importer: Importer, yolo: dict[str, bytes], classes: Any
) -> None:
    ended = importer.run(yolo, classes=classes)
    assert (ended["status"], ended["done"]) == ("succeeded", 3)
    assert ended["layout"] == {
        "name": "yolo",
        "is_named": False,
        "evidence": "yolo: data.yaml and 1 .txt in a label folder",
        "notes": ["classes as data.yaml numbers them: spur, short"],
    }
    assert importer.items()[0]["label"]["classes"] == {"short": 1}


def test_a_data_yaml_with_other_classes_fails_the_import_at_its_place(
    importer: Importer, yolo: dict[str, bytes]
) -> None:
    ended = importer.run(yolo, classes=["spur", "pit"])
    assert (ended["status"], ended["error"]["code"]) == ("failed", "classes_differ")
    assert (ended["error"]["file"], ended["error"]["where"]) == ("data.yaml", "names")
    assert importer.items() == []
    broken = importer.run(yolo | {"data.yaml": b"nc: 1\nnames: [spur"}, classes=["spur"])
    assert (broken["error"]["code"], broken["error"]["where"]) == ("label_not_yaml", "line 2")


def test_two_formats_for_one_frame_are_asked_about_and_the_named_one_is_taken(
    importer: Importer, yolo: dict[str, bytes], pictures: Any
) -> None:
    both = yolo | {"annotations/a.json": pictures.labelme("a.png")}
    refused = importer.run(both, name="first")
    assert (refused["status"], refused["error"]["code"]) == ("failed", "layout_ambiguous")
    assert refused["error"]["file"] == "archive"
    assert importer.items() == []
    for layout, kind in (("yolo", "yolo"), ("labelme", "labelme")):
        ended = importer.run(both, layout=layout)
        assert (ended["layout"]["name"], ended["layout"]["is_named"]) == (layout, True)
        assert any("were left out" in note for note in ended["layout"]["notes"])
        assert importer.items()[0]["label"]["kind"] == kind


def test_an_ambiguous_archive_is_imported_when_its_layout_is_named_and_is_not_sent_again(
    importer: Importer, yolo: dict[str, bytes], pictures: Any, storage: Storage
) -> None:
    refused = importer.run(yolo | {"annotations/a.json": pictures.labelme("a.png")})
    path = f"/datasets/{importer.dataset}/imports/{refused['id']}"
    assert storage.archive_path(refused["id"]).exists()
    mismatch = importer.client.put(f"{path}/layout", json={"name": "voc"})
    assert (mismatch.status_code, mismatch.json()["status"]) == (200, "queued")
    importer.finish(refused["id"])
    assert importer.client.get(path).json()["error"]["code"] == "layout_mismatch"
    for _ in range(2):
        # The second time its answer was lost.
        named = importer.client.put(f"{path}/layout", json={"name": "yolo"}).json()
        assert (named["status"], named["error"]) == ("queued", None)
    importer.finish(refused["id"])
    ended = importer.client.put(f"{path}/layout", json={"name": "yolo"}).json()
    assert (ended["status"], ended["layout"]["name"]) == ("succeeded", "yolo")
    assert importer.items()[0]["label"]["kind"] == "yolo"
    assert list(storage.spool_dir.iterdir()) == []
    other = importer.client.put(f"{path}/layout", json={"name": "labelme"})
    assert (other.status_code, other.json()["code"]) == (409, "layout_settled")


def test_a_layout_is_named_only_where_that_helps_and_the_archive_is_there(
    importer: Importer, yolo: dict[str, bytes], pictures: Any, storage: Storage, engine: Engine
) -> None:
    broken = importer.run(yolo | {"data.yaml": b"nc: 1"}, classes=["spur"])
    path = f"/datasets/{importer.dataset}/imports/{broken['id']}/layout"
    refused = importer.client.put(path, json={"name": "yolo"})
    assert (refused.status_code, refused.json()["code"]) == (409, "layout_settled")
    assert not storage.archive_path(broken["id"]).exists()
    ambiguous = importer.run(yolo | {"annotations/a.json": pictures.labelme("a.png")})
    path = f"/datasets/{importer.dataset}/imports/{ambiguous['id']}/layout"
    now = time.time()
    assert clear_archives(engine, storage, older_than=now - 60, unfinished_older_than=now) == 0
    assert clear_archives(engine, storage, older_than=now + 60, unfinished_older_than=now) == 1
    gone = importer.client.put(path, json={"name": "yolo"})
    assert (gone.status_code, gone.json()["code"]) == (409, "archive_gone")
    assert gone.json()["hint"]
    assert importer.client.put(path, json={"name": "other"}).status_code == 422


def test_a_coco_files_own_notes_are_in_the_imports_answer(
    importer: Importer, pictures: Any
) -> None:
    document = {
        "images": [{"id": 0, "file_name": "a.png", "width": 96, "height": 64}],
        "categories": [],
        "annotations": [],
    }
    files = {"all.json": json.dumps(document).encode(), "a.png": pictures.frame(0)}
    ended = importer.run(files)
    assert ended["layout"]["evidence"] == 'coco: all.json with "images" and "annotations"'
    assert ended["layout"]["notes"] == ["all.json: labels of 1 frames"]


def test_a_layout_that_does_not_exist_is_refused_before_the_archive_is_received(
    importer: Importer, storage: Storage
) -> None:
    dataset = importer.client.post("/datasets", json={"name": "a", "task": "segmentation"}).json()
    path = f"/datasets/{dataset['id']}/archive"
    answer = importer.client.put(path, content=b"x", params={"layout": "dota"})
    assert (answer.status_code, answer.json()["where"]) == (422, "query/layout")
    assert list(storage.spool_dir.iterdir()) == []


def test_a_deeppcb_archive_brings_its_tested_pictures_with_their_boxes(
    importer: Importer, pictures: Any
) -> None:
    files = {
        "g/12000_not/12000001.txt": b"10 10 30 20 3\n",
        "g/12000/12000001_test.png": pictures.frame(0),
        "g/12000/12000001_temp.png": pictures.frame(1),
        "README.md": b"about",
    }
    ended = importer.run(files, layout="deeppcb")
    assert (ended["status"], ended["done"], ended["total"]) == ("succeeded", 4, 4)
    (item,) = importer.items()
    assert item["name"] == "g/12000/12000001_test.png"
    assert item["label"]["classes"] == {"mousebite": 1}
    assert [note.split(":")[0] for note in ended["layout"]["notes"]] == [
        "1 pictures _temp are what frames are compared with, and no frames",
        "1 files are no part of the deeppcb layout and were left out",
    ]


@pytest.fixture
def mvtec(pictures: Any) -> dict[str, bytes]:
    return {
        "cable/train/good/0.png": pictures.frame(0),
        "cable/test/good/0.png": pictures.frame(1),
        "cable/test/cut/0.png": pictures.frame(2),
        "cable/ground_truth/cut/0_mask.png": pictures.mask(),
        "cable/test/bent/0.png": pictures.frame(3),
        "cable/ground_truth/bent/0_mask.png": pictures.mask(),
        "cable/license.txt": b"CC",
    }


def test_an_mvtec_archive_declares_good_frames_and_masks_by_folder(
    importer: Importer, mvtec: dict[str, bytes]
) -> None:
    ended = importer.run(mvtec, classes=["scratch", "cut", "bent"])
    assert (ended["status"], ended["layout"]["name"]) == ("succeeded", "mvtec")
    classes = {item["name"]: item["label"]["classes"] for item in importer.items()}
    assert classes == {
        "cable/train/good/0.png": {},
        "cable/test/good/0.png": {},
        "cable/test/cut/0.png": {"cut": 1},
        "cable/test/bent/0.png": {"bent": 1},
    }
    wish = {"split": {"train": 1, "calibration": 0, "test": 0}}
    frozen = importer.client.post(f"/datasets/{importer.dataset}/versions", json=wish)
    assert frozen.status_code == 201, frozen.json()
    dataset = importer.client.get(f"/datasets/{importer.dataset}").json()
    assert dataset["problems"] == []


def test_an_mvtec_archive_needs_its_classes_declared_and_lists_them(
    importer: Importer, mvtec: dict[str, bytes]
) -> None:
    ended = importer.run(mvtec)
    assert (ended["status"], ended["error"]["code"]) == ("failed", "classes_needed")
    assert ended["error"]["hint"].endswith("bent, cut.")
    assert importer.items() == []


def test_a_frame_that_came_before_with_a_labelled_defect_is_not_declared_good_unsaid(
    importer: Importer, mvtec: dict[str, bytes], pictures: Any
) -> None:
    body = {"name": "early", "task": "segmentation", "classes": ["cut", "bent", "scratch"]}
    name = "cable/train/good/0"
    files = [(f"{name}.png", pictures.frame(0)), (f"{name}.json", pictures.labelme("0.png"))]
    dataset = importer.client.post("/datasets", json=body).json()["id"]
    path = f"/datasets/{dataset}"
    sent = importer.client.post(f"{path}/images", files=[("files", file) for file in files])
    assert sent.status_code == 201, sent.json()
    answer = importer.client.put(f"{path}/archive", content=pack(mvtec))
    importer.finish(answer.json()["import"]["id"])
    ended = importer.client.get(answer.headers["Location"]).json()
    assert [(file["file"], file["code"]) for file in ended["rejected"]] == [
        ("cable/train/good/0.png", "duplicate_name")
    ]


def test_a_cvat_archive_labels_its_frames_and_points_at_a_wrong_line(
    importer: Importer, pictures: Any
) -> None:
    box = '<box label="pit" xtl="1" ytl="2" xbr="9" ybr="9"/>'
    text = (
        "<annotations><version>1.1</version>\n"
        f'<image id="0" name="a.png" width="96" height="64">{box}</image>\n'
        '<image id="1" name="b.png" width="96" height="64"/>\n</annotations>'
    )
    files = {
        "annotations.xml": text.encode(),
        "images/a.png": pictures.frame(0),
        "images/b.png": pictures.frame(1),
    }
    ended = importer.run(files)
    assert (ended["status"], ended["layout"]["name"]) == ("succeeded", "cvat")
    assert [item["label"]["classes"] for item in importer.items()] == [{"pit": 1}, {}]
    assert {item["label"]["kind"] for item in importer.items()} == {"cvat"}
    wrong = files | {"annotations.xml": text.replace('height="64"/>', 'height="65"/>').encode()}
    ended = importer.run(wrong, name="wrong")
    (rejected,) = ended["rejected"]
    assert (rejected["code"], rejected["where"]) == ("label_size_mismatch", "line 3")
    assert [item["label"] for item in importer.items()] == [None, None]


CLASS_MASKS = ["scratch", "pit"]


@pytest.fixture
def class_masks(pictures: Any) -> dict[str, bytes]:
    low = np.zeros((64, 96), np.uint8)
    low[40:44, 5:9] = 1
    return {
        "masks/pit/a.png": pictures.mask(),
        "masks/pit/lot/b.png": pictures.mask(),
        "masks/scratch/a.png": pictures.encode(low),
        "images/a.png": pictures.frame(0),
        "images/lot/b.png": pictures.frame(1),
        "images/c.png": pictures.frame(2),
    }


def test_an_archive_with_a_mask_a_class_labels_each_frame_once(
    importer: Importer, class_masks: dict[str, bytes]
) -> None:
    ended = importer.run(class_masks, classes=CLASS_MASKS)
    assert (ended["status"], ended["done"], ended["total"]) == ("succeeded", 6, 6)
    assert ended["layout"]["name"] == "class_masks"
    assert any("merged into an index mask" in note for note in ended["layout"]["notes"])
    found = {item["name"]: item["label"] and item["label"]["classes"] for item in importer.items()}
    assert found == {
        "images/a.png": {"pit": 1, "scratch": 1},
        "images/lot/b.png": {"pit": 1},
        "images/c.png": None,
    }


def test_a_merged_label_is_known_the_second_time_and_gone_once_deleted(
    importer: Importer, class_masks: dict[str, bytes], pictures: Any
) -> None:
    importer.run(class_masks, classes=CLASS_MASKS)
    path = f"/datasets/{importer.dataset}"
    for files, status in (
        (class_masks, "succeeded"),
        (
            class_masks | {"masks/scratch/a.png": pictures.encode(np.zeros((64, 96), np.uint8))},
            "succeeded_with_problems",
        ),
    ):
        answer = importer.client.put(f"{path}/archive", content=pack(files))
        importer.finish(answer.json()["import"]["id"])
        ended = importer.client.get(answer.headers["Location"]).json()
        assert ended["status"] == status, ended
    assert [(file["file"], file["code"]) for file in ended["rejected"]] == [
        ("masks/pit/a.png", "duplicate_name"),
        ("masks/scratch/a.png", "duplicate_name"),
    ]
    label = next(item["label"] for item in importer.items() if item["name"] == "images/a.png")
    assert importer.client.delete(f"{path}/labels/{label['id']}").status_code == 204
    answer = importer.client.put(f"{path}/archive", content=pack(files))
    importer.finish(answer.json()["import"]["id"])
    labels = {item["name"]: item["label"] for item in importer.items()}
    assert labels["images/a.png"]["classes"] == {"pit": 1}


@pytest.mark.parametrize("done", range(7))
def test_an_import_killed_anywhere_among_masks_goes_on_and_counts_each_file_once(
    importer: Importer, class_masks: dict[str, bytes], engine: Engine, done: int
) -> None:
    importer.run(class_masks, classes=CLASS_MASKS)
    before = importer.items()
    answer = importer.client.put(f"/datasets/{importer.dataset}/archive", content=pack(class_masks))
    import_id = answer.json()["import"]["id"]
    with session_factory(engine).begin() as session:
        session.execute(update(Import).where(Import.id == import_id).values(done=done))
    importer.finish(import_id)
    ended = importer.client.get(answer.headers["Location"]).json()
    assert (ended["status"], ended["done"]) == ("succeeded", 6)
    assert importer.items() == before


@pytest.mark.parametrize(
    ("classes", "layout", "code", "file"),
    [
        (["scratch"], None, "unknown_class", "masks/pit"),
        (None, None, "classes_needed", "archive"),
        (None, "class_masks", "classes_needed", "archive"),
    ],
)
def test_masks_of_undeclared_classes_fail_the_import_before_anything_is_taken_in(
    importer: Importer,
    class_masks: dict[str, bytes],
    classes: Any,
    layout: str | None,
    code: str,
    file: str,
) -> None:
    ended = importer.run(class_masks, classes=classes, layout=layout)
    assert (ended["status"], ended["error"]["code"]) == ("failed", code)
    assert ended["error"]["file"] == file
    assert importer.items() == []


def test_a_merged_mask_of_another_size_than_its_frame_is_refused_by_the_names_of_its_files(
    importer: Importer, class_masks: dict[str, bytes], pictures: Any
) -> None:
    frame = {"images/a.png": pictures.frame(0, width=97)}
    ended = importer.run(class_masks | frame, classes=CLASS_MASKS)
    assert [(file["file"], file["code"]) for file in ended["rejected"]] == [
        ("masks/pit/a.png", "label_size_mismatch"),
        ("masks/scratch/a.png", "label_size_mismatch"),
    ]
