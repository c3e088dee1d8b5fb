import json
from typing import Any

import pytest
from fastapi.testclient import TestClient

from data import BoxLabels, GoodFrame, Manifest, PolygonLabels, rasterize
from service.settings import Settings
from service.storage import Storage

OUTLINE = [10, 10, 30, 10, 30, 20]
FRAMES = ("images/line1/a.png", "images/line1/b.png", "images/line2/c.png")


def create(client: TestClient, **others: Any) -> str:
    body = {"name": "boards", "task": "segmentation", **others}
    return str(client.post("/datasets", json=body).json()["id"])


def send(client: TestClient, dataset: str, *files: tuple[str, bytes]) -> Any:
    return client.post(f"/datasets/{dataset}/images", files=[("files", file) for file in files])


def coco(*names: str, width: int = 96, **changes: Any) -> bytes:
    """The first frame has an outline, the second a box, further ones are good."""
    images = [
        {"id": index, "file_name": name, "width": width, "height": 64}
        for index, name in enumerate(names)
    ]
    annotations = [
        {"image_id": 0, "category_id": 5, "segmentation": [OUTLINE], "bbox": [10, 10, 20, 10]},
        {"image_id": 1, "category_id": 6, "bbox": [10, 10, 20, 10]},
    ]
    document = {
        "images": images,
        "categories": [{"id": 5, "name": "spur"}, {"id": 6, "name": "short"}],
        "annotations": annotations[: len(names)],
    }
    return json.dumps(document | changes).encode()


@pytest.fixture
def dataset(client: TestClient, pictures: Any) -> str:
    dataset = create(client)
    files = [(name, pictures.frame(seed)) for seed, name in enumerate(FRAMES)]
    assert send(client, dataset, *files).status_code == 201
    return dataset


def test_a_coco_file_labels_every_frame_it_names_in_whatever_folder(
    client: TestClient, dataset: str, settings: Settings
) -> None:
    answer = send(client, dataset, ("annotations/all.json", coco("line1/a.png", "b.png", "c.png")))
    assert answer.status_code == 201
    (outcome,) = answer.json()["files"]
    assert (outcome["outcome"], outcome["notes"]) == ("accepted", ["labels of 3 frames"])
    items = client.get(f"/datasets/{dataset}/items").json()["items"]
    assert [item["label"]["kind"] for item in items] == ["coco"] * 3
    assert items[0]["label"]["name"] == "annotations/all.json line1/a.png"
    assert [item["label"]["classes"] for item in items] == [{"spur": 1}, {"short": 1}, {}]
    overlay = client.get(f"/datasets/{dataset}/items/{items[0]['id']}/overlay")
    assert overlay.headers["content-type"] == "image/jpeg"
    version = client.post(f"/datasets/{dataset}/versions", json={}).json()
    manifest = Manifest.read(Storage(settings.storage_dir).manifest_path(version["digest"]))
    assert [type(item.labels) for item in manifest.items] == [PolygonLabels, BoxLabels, GoodFrame]


def test_the_same_file_again_is_known_and_a_longer_one_adds_what_is_new(
    client: TestClient, dataset: str
) -> None:
    first = ("all.json", coco("a.png", "b.png"))
    send(client, dataset, first)
    (again,) = send(client, dataset, first).json()["files"]
    assert again["outcome"] == "known"
    longer = send(client, dataset, ("more.json", coco("a.png", "b.png", "c.png")))
    (outcome,) = longer.json()["files"]
    assert outcome["notes"] == ["labels of 3 frames", "2 of them were there already"]


def test_labels_wait_for_frames_that_come_later(
    client: TestClient, dataset: str, pictures: Any
) -> None:
    (outcome,) = send(client, dataset, ("all.json", coco("line1/a.png", "line3/d.png"))).json()[
        "files"
    ]
    assert outcome["notes"] == ["labels of 2 frames", "1 of them wait for their frame"]
    send(client, dataset, ("images/line3/d.png", pictures.frame(9)))
    items = client.get(f"/datasets/{dataset}/items?labelled=true").json()["items"]
    assert [item["name"] for item in items] == ["images/line1/a.png", "images/line3/d.png"]


@pytest.mark.parametrize(
    ("content", "code", "where"),
    [
        (coco("a.png", "b.png", width=97), "label_size_mismatch", "/images/0"),
        (coco("a.png", "line1/a.png"), "duplicate_name", "/images/1"),
        (coco("c.png", "README"), "unsupported_file", "/images/1/file_name"),
        (
            coco("a.png", annotations=[{"image_id": 4}]),
            "label_field_type",
            "/annotations/0/image_id",
        ),
    ],
)
def test_a_file_that_is_wrong_in_one_place_leaves_no_label(
    client: TestClient, dataset: str, content: bytes, code: str, where: str
) -> None:
    answer = send(client, dataset, ("all.json", content))
    assert answer.status_code == 422
    (outcome,) = answer.json()["files"]
    assert (outcome["code"], outcome["where"]) == (code, where)
    assert outcome["hint"]
    assert client.get(f"/datasets/{dataset}/labels").json()["items"] == []


def test_a_name_that_fits_two_frames_is_refused_until_it_says_which(
    client: TestClient, dataset: str, pictures: Any
) -> None:
    send(client, dataset, ("images/line2/a.png", pictures.frame(8)))
    (outcome,) = send(client, dataset, ("all.json", coco("a.png"))).json()["files"]
    assert (outcome["code"], outcome["where"]) == ("frame_ambiguous", "/images/0/file_name")
    assert "images/line1/a.png or images/line2/a.png" in outcome["detail"]
    assert send(client, dataset, ("all.json", coco("line2/a.png"))).status_code == 201


def test_a_frame_with_another_label_keeps_it(
    client: TestClient, dataset: str, pictures: Any
) -> None:
    send(client, dataset, ("images/line1/b.json", pictures.labelme("b.png")))
    (outcome,) = send(client, dataset, ("all.json", coco("a.png", "b.png"))).json()["files"]
    assert (outcome["code"], outcome["where"]) == ("duplicate_name", "/images/1")
    delete, path = outcome["hint"].rpartition("DELETE ")[1:]
    assert delete == "DELETE "
    assert client.delete(path).status_code == 204
    assert send(client, dataset, ("all.json", coco("a.png", "b.png"))).status_code == 201


def test_run_length_masks_are_kept_as_index_masks_and_the_answer_says_so(
    client: TestClient, pictures: Any, settings: Settings
) -> None:
    dataset = create(client, classes=["short", "spur"])
    send(client, dataset, ("a.png", pictures.frame(0)))
    area = 96 * 64
    masked = {"size": [64, 96], "counts": [100, 7, area - 107]}
    annotations = [
        {"image_id": 0, "category_id": 5, "iscrowd": 1, "segmentation": masked},
        {"image_id": 0, "category_id": 6, "segmentation": [[50, 10, 70, 10, 70, 20]]},
    ]
    file = ("all.json", coco("a.png", annotations=annotations))
    answer = send(client, dataset, file)
    assert answer.status_code == 201, answer.json()
    assert answer.json()["files"][0]["notes"] == [
        "labels of 1 frames",
        "1 of them are run-length masks, kept as index masks",
        "1 outlines were drawn into the masks of their frames",
    ]
    assert send(client, dataset, file).json()["files"][0]["outcome"] == "known"
    (item,) = client.get(f"/datasets/{dataset}/items").json()["items"]
    assert item["label"]["classes"] == {"short": 1, "spur": 1}
    wish = {"split": {"train": 1, "calibration": 0, "test": 0}}
    version = client.post(f"/datasets/{dataset}/versions", json=wish).json()
    storage = Storage(settings.storage_dir)
    (frozen,) = Manifest.read(storage.manifest_path(version["digest"])).items
    planes = rasterize(frozen.labels, 96, 64, ["short", "spur"], storage.root)
    assert planes[36:43, 1, 1].all()
    assert int(planes[:, :, 1].sum()) == 7
    assert planes[12, 65].tolist() == [1, 0]


def test_a_wrong_run_length_mask_leaves_no_label(client: TestClient, pictures: Any) -> None:
    dataset = create(client, classes=["short", "spur"])
    send(client, dataset, ("a.png", pictures.frame(0)))
    masked = {"size": [64, 96], "counts": [100, 7]}
    found = [{"image_id": 0, "category_id": 5, "segmentation": masked}]
    answer = send(client, dataset, ("all.json", coco("a.png", annotations=found)))
    assert answer.status_code == 422
    assert answer.json()["where"] == "/annotations/0/segmentation/counts"
    assert client.get(f"/datasets/{dataset}").json()["counts"]["labelled"] == 0
