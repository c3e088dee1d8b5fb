import io
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from data import Box, BoxLabels, Manifest, MaskLabels, PolygonLabels, rasterize
from service.settings import Settings
from service.storage import Storage


def _create(
    client: TestClient, classes: list[str] | None = None, *, task: str = "segmentation"
) -> str:
    body = {"name": "rings", "task": task, "classes": classes}
    return str(client.post("/datasets", json=body).json()["id"])


def _send(client: TestClient, dataset: str, *files: tuple[str, bytes]) -> None:
    parts = [("files", file) for file in files]
    answer = client.post(f"/datasets/{dataset}/images", files=parts)
    assert answer.status_code == 201, answer.text


def _fill(client: TestClient, dataset: str, pictures: Any, count: int = 6) -> None:
    for seed in range(count):
        _send(
            client,
            dataset,
            (f"images/part{seed // 2}_{seed}.png", pictures.frame(seed)),
            (f"masks/part{seed // 2}_{seed}.png", pictures.mask()),
        )


def _freeze(client: TestClient, dataset: str, **body: Any) -> Any:
    return client.post(f"/datasets/{dataset}/versions", json=body)


def test_a_version_is_a_manifest_that_training_can_read(
    client: TestClient, pictures: Any, settings: Settings
) -> None:
    dataset = _create(client)
    _fill(client, dataset, pictures)
    answer = _freeze(client, dataset)
    assert answer.status_code == 201
    version = answer.json()
    storage = Storage(settings.storage_dir)
    manifest = Manifest.read(storage.manifest_path(version["digest"]))
    assert manifest.digest == version["digest"]
    assert len(manifest.items) == version["statistics"]["frames"] == 6
    for item in manifest.items:
        assert isinstance(item.labels, MaskLabels)
        mask = rasterize(item.labels, item.width, item.height, manifest.classes, storage.root)
        assert int(mask.sum()) == 200
        assert (storage.root / item.file).is_file()
    downloaded = client.get(f"/versions/{version['id']}/manifest")
    assert downloaded.content == storage.manifest_path(version["digest"]).read_bytes()


def test_the_same_content_and_split_is_the_same_version(client: TestClient, pictures: Any) -> None:
    dataset = _create(client)
    _fill(client, dataset, pictures)
    first, again = _freeze(client, dataset), _freeze(client, dataset)
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()
    assert first.headers["Location"] == f"/versions/{first.json()['id']}"
    other = _freeze(client, dataset, split={"seed": 1})
    assert other.status_code == 201
    listed = client.get(f"/datasets/{dataset}/versions").json()["items"]
    assert [version["id"] for version in listed] == [other.json()["id"], first.json()["id"]]


def test_freezing_twice_at_once_makes_one_version(client: TestClient, pictures: Any) -> None:
    dataset = _create(client)
    _fill(client, dataset, pictures)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: _freeze(client, dataset), range(4)))
    assert sorted(answer.status_code for answer in answers) == [200, 200, 200, 201]
    assert len({answer.json()["id"] for answer in answers}) == 1


def test_a_version_does_not_change_with_its_data_set(client: TestClient, pictures: Any) -> None:
    dataset = _create(client)
    _fill(client, dataset, pictures)
    version = _freeze(client, dataset).json()
    manifest = client.get(f"/versions/{version['id']}/manifest").content
    item = client.get(f"/datasets/{dataset}/items").json()["items"][0]
    assert client.delete(f"/datasets/{dataset}/items/{item['id']}").status_code == 204
    assert client.get(f"/datasets/{dataset}").json()["counts"]["items"] == 5
    assert client.get(f"/versions/{version['id']}").json() == version
    assert client.get(f"/versions/{version['id']}/manifest").content == manifest


def test_frames_of_one_part_never_cross_splits(
    client: TestClient, pictures: Any, settings: Settings
) -> None:
    dataset = _create(client)
    _fill(client, dataset, pictures, 8)
    version = _freeze(client, dataset, split={"group_pattern": r"part(\d)"}).json()
    path = Storage(settings.storage_dir).manifest_path(version["digest"])
    splits: dict[str, set[str]] = {}
    for item in Manifest.read(path).items:
        splits.setdefault(item.group or "", set()).add(item.split or "")
    assert len(splits) == 4
    assert all(len(found) == 1 for found in splits.values())


def test_a_frame_without_label_stops_the_freeze_unless_told_what_it_is(
    client: TestClient, pictures: Any
) -> None:
    dataset = _create(client)
    _fill(client, dataset, pictures)
    _send(client, dataset, ("images/x.png", pictures.frame(99)))
    refused = _freeze(client, dataset)
    assert (refused.status_code, refused.json()["code"]) == (422, "missing_label")
    assert refused.json()["file"] == "images/x.png"
    assert refused.json()["where"]
    assert "exclude" in refused.json()["hint"]
    good = _freeze(client, dataset, unlabelled="good").json()
    assert good["statistics"]["frames"] == 7
    assert any("taken as good: images/x.png" in warning for warning in good["warnings"])
    fewer = _freeze(client, dataset, unlabelled="exclude").json()
    assert fewer["statistics"]["frames"] == 6
    assert any("left out: images/x.png" in warning for warning in fewer["warnings"])


def test_at_most_twenty_names_are_listed(client: TestClient, pictures: Any) -> None:
    dataset = _create(client)
    _send(client, dataset, *[(f"{seed:02}.png", pictures.frame(seed)) for seed in range(25)])
    detail = _freeze(client, dataset).json()["detail"]
    assert detail.startswith("25 frames have no label: 00.png, 01.png")
    assert detail.endswith("19.png, ...")


def test_a_label_without_its_frame_stops_the_freeze(client: TestClient, pictures: Any) -> None:
    dataset = _create(client)
    _fill(client, dataset, pictures)
    _send(client, dataset, ("masks/lost.png", pictures.mask()))
    refused = _freeze(client, dataset, unlabelled="good")
    assert (refused.status_code, refused.json()["code"]) == (422, "label_without_image")
    assert refused.json()["file"] == "masks/lost.png"
    (waiting,) = client.get(f"/datasets/{dataset}/labels?waiting=true").json()["items"]
    assert client.delete(f"/datasets/{dataset}/labels/{waiting['id']}").status_code == 204
    assert _freeze(client, dataset).status_code == 201


def test_undeclared_classes_are_the_union_of_what_the_labels_name(
    client: TestClient, pictures: Any, settings: Settings
) -> None:
    dataset = _create(client)
    for seed in range(4):
        label = ["stain", "pit"][seed % 2]
        outline = pictures.labelme(f"{seed}.png", label=label)
        _send(client, dataset, (f"{seed}.png", pictures.frame(seed)), (f"{seed}.json", outline))
    version = _freeze(client, dataset).json()
    assert version["classes"] == ["pit", "stain"]
    path = Storage(settings.storage_dir).manifest_path(version["digest"])
    assert all(isinstance(item.labels, PolygonLabels) for item in Manifest.read(path).items)


def test_a_versions_health_names_what_is_wrong_and_the_remedy(
    client: TestClient, pictures: Any
) -> None:
    dataset = _create(client)
    _fill(client, dataset, pictures)
    version = _freeze(client, dataset).json()["id"]
    health = client.get(f"/versions/{version}/health").json()
    assert health["version"] == version
    found = {finding["code"]: finding for finding in health["findings"]}
    # Every frame of the set is defective.
    without_good = [f for f in health["findings"] if f["code"] == "split_without_good"]
    assert [f["examples"] for f in without_good] == [["train"], ["calibration"], ["test"]]
    assert found["few_defects"]["hint"]
    assert "defects_below_stride" not in found
    coarse = client.get(f"/versions/{version}/health?stride_px=32").json()["findings"]
    assert "defects_below_stride" in {finding["code"] for finding in coarse}
    assert client.get(f"/versions/{version}/health?stride_px=0").status_code == 422


def test_two_versions_are_compared_frame_by_frame(client: TestClient, pictures: Any) -> None:
    dataset = _create(client)
    _fill(client, dataset, pictures)
    split = {"group_pattern": r"part(\d+)", "train": 0.5, "calibration": 0.0, "test": 0.5}
    older = _freeze(client, dataset, split=split).json()["id"]
    first, *_ = client.get(f"/datasets/{dataset}/items").json()["items"]
    client.delete(f"/datasets/{dataset}/items/{first['id']}")
    _send(client, dataset, ("images/part9_9.png", pictures.frame(9)))
    newer = _freeze(client, dataset, split=split, unlabelled="good").json()["id"]
    answer = client.get(f"/versions/{newer}/diff?against={older}")
    assert answer.status_code == 200
    diff = answer.json()
    assert (diff["older"], diff["newer"]) == (older, newer)
    assert (diff["added"], diff["removed"]) == (["images/part9_9.png"], [first["name"]])
    assert (diff["relabelled"], diff["counts"]["added"]) == ([], 1)
    assert all(moved["before"] != moved["after"] for moved in diff["moved"])
    missing = client.get(f"/versions/{newer}/diff?against=ver_none")
    assert (missing.status_code, missing.json()["code"]) == (404, "version_not_found")
    assert client.get(f"/versions/{newer}/diff").status_code == 422


@pytest.mark.parametrize(("task", "warned"), [("segmentation", True), ("detection", False)])
def test_boxes_of_pascal_voc_files_are_kept_as_boxes_and_segmentation_is_warned_of_them(
    client: TestClient, pictures: Any, settings: Settings, task: str, warned: bool
) -> None:
    dataset = _create(client, task=task)
    for seed in range(4):
        annotation = pictures.voc(label=["stain", "pit"][seed % 2])
        _send(
            client,
            dataset,
            (f"JPEGImages/{seed}.png", pictures.frame(seed)),
            (f"Annotations/{seed}.xml", annotation),
        )
    (item, *_) = client.get(f"/datasets/{dataset}/items").json()["items"]
    assert (item["label"]["kind"], item["label"]["classes"]) == ("voc", {"stain": 1})
    mask = client.get(f"/datasets/{dataset}/items/{item['id']}/mask?format=png")
    drawn = np.asarray(Image.open(io.BytesIO(mask.content))).any(axis=2)
    rows, columns = np.nonzero(drawn)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (10, 19, 10, 29)
    version = _freeze(client, dataset).json()
    assert version["classes"] == ["pit", "stain"]
    assert any("labelled by boxes" in text for text in version["warnings"]) is warned
    refused = "a segmentation job will be refused"
    assert any(refused in text for text in version["warnings"]) is warned
    path = Storage(settings.storage_dir).manifest_path(version["digest"])
    labels = [item.labels for item in Manifest.read(path).items]
    assert labels[0] == BoxLabels((Box("stain", 10, 10, 20, 10),))


def test_binary_masks_without_classes_are_called_defect_and_a_warning_says_so(
    client: TestClient, pictures: Any
) -> None:
    dataset = _create(client)
    _fill(client, dataset, pictures)
    version = _freeze(client, dataset).json()
    assert version["classes"] == ["defect"]
    assert any("'defect'" in warning for warning in version["warnings"])


def test_masks_beside_named_outlines_need_declared_classes(
    client: TestClient, pictures: Any
) -> None:
    dataset = _create(client)
    _fill(client, dataset, pictures)
    _send(client, dataset, ("x.png", pictures.frame(9)), ("x.json", pictures.labelme("x.png")))
    refused = _freeze(client, dataset)
    assert (refused.status_code, refused.json()["code"]) == (422, "classes_undeclared")


def test_a_split_without_defects_is_warned_about(client: TestClient, pictures: Any) -> None:
    dataset = _create(client, ["defect"])
    _fill(client, dataset, pictures, 1)
    _send(client, dataset, *[(f"good{seed}.png", pictures.frame(50 + seed)) for seed in range(5)])
    version = _freeze(client, dataset, unlabelled="good").json()
    assert any("test split has no defective frame" in warning for warning in version["warnings"])


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"split": {"train": 0.5}}, "split_shares"),
        ({"split": {"group_pattern": "part("}}, "group_pattern_invalid"),
        ({"split": {"group_pattern": "lot(x)"}}, "group_pattern_mismatch"),
        ({"unlabelled": "guess"}, "invalid_request"),
        ({"splits": {}}, "invalid_request"),
    ],
)
def test_an_impossible_split_is_refused(
    client: TestClient, pictures: Any, body: dict[str, Any], code: str
) -> None:
    dataset = _create(client)
    _fill(client, dataset, pictures)
    refused = _freeze(client, dataset, **body)
    assert (refused.status_code, refused.json()["code"]) == (422, code)
    assert refused.json()["hint"]


def test_an_empty_data_set_has_no_version(client: TestClient) -> None:
    refused = _freeze(client, _create(client))
    assert (refused.status_code, refused.json()["code"]) == (422, "dataset_empty")


def test_a_version_asked_for_twice_under_one_key_is_answered_alike(
    client: TestClient, pictures: Any
) -> None:
    dataset = _create(client)
    _fill(client, dataset, pictures)
    path, headers = f"/datasets/{dataset}/versions", {"Idempotency-Key": "k1"}
    first = client.post(path, json={}, headers=headers)
    _send(client, dataset, ("more.png", pictures.frame(77)), ("masks/more.png", pictures.mask()))
    again = client.post(path, json={}, headers=headers)
    assert (again.status_code, again.json()) == (201, first.json())
    reused = client.post(path, json={"split": {"seed": 4}}, headers=headers)
    assert (reused.status_code, reused.json()["code"]) == (409, "idempotency_key_reused")


def test_an_unknown_version_is_not_found(client: TestClient) -> None:
    assert client.get("/versions/ver_none").json()["code"] == "version_not_found"


def test_other_requests_are_answered_while_a_version_is_frozen(
    client: TestClient, pictures: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = _create(client)
    _fill(client, dataset, pictures)
    begun, may_go_on = threading.Event(), threading.Event()
    put_manifest = Storage.put_manifest

    def held(*arguments: Any) -> Any:
        begun.set()
        assert may_go_on.wait(30)
        return put_manifest(*arguments)

    monkeypatch.setattr(Storage, "put_manifest", held)
    with ThreadPoolExecutor(1) as pool:
        frozen = pool.submit(_freeze, client, dataset)
        assert begun.wait(30)
        assert client.get(f"/datasets/{dataset}/items").status_code == 200
        # A reader and a writer: freezing holds no lock of the database.
        _send(client, dataset, ("later.png", pictures.frame(99)))
        assert not frozen.done()
        may_go_on.set()
        assert frozen.result().status_code == 201
    assert frozen.result().json()["statistics"]["frames"] == 6
