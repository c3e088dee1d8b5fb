import io
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image


@pytest.fixture
def dataset(client: TestClient, pictures: Any) -> str:
    body = {"name": "rings", "task": "segmentation", "classes": ["scratch", "pit"]}
    dataset = str(client.post("/datasets", json=body).json()["id"])
    files = [(f"{seed}.png", pictures.frame(seed)) for seed in range(5)]
    files += [("masks/0.png", pictures.mask(value=2)), ("1.json", pictures.labelme("1.png"))]
    answer = client.post(f"/datasets/{dataset}/images", files=[("files", file) for file in files])
    assert answer.status_code == 201
    return dataset


def _item(client: TestClient, dataset: str, name: str) -> Any:
    items = client.get(f"/datasets/{dataset}/items").json()["items"]
    return next(item for item in items if item["name"] == name)


def _picture(content: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(content)))


def test_frames_are_listed_by_name_with_their_labels(client: TestClient, dataset: str) -> None:
    page = client.get(f"/datasets/{dataset}/items").json()
    assert [item["name"] for item in page["items"]] == [f"{seed}.png" for seed in range(5)]
    labels = [item["label"] and item["label"]["classes"] for item in page["items"]]
    assert labels == [{"pit": 1}, {"scratch": 1}, None, None, None]
    assert page["next_cursor"] is None


def test_frames_can_be_listed_by_whether_they_are_labelled(
    client: TestClient, dataset: str
) -> None:
    def names(query: str) -> list[str]:
        page = client.get(f"/datasets/{dataset}/items?{query}").json()
        return [item["name"] for item in page["items"]]

    assert names("labelled=true") == ["0.png", "1.png"]
    assert names("labelled=false") == ["2.png", "3.png", "4.png"]


def test_pages_reach_every_frame_once_while_others_are_deleted(
    client: TestClient, dataset: str
) -> None:
    first = client.get(f"/datasets/{dataset}/items?limit=2").json()
    # With an offset instead of a cursor, this would make the next page skip 2.png.
    client.delete(f"/datasets/{dataset}/items/{first['items'][0]['id']}")
    rest = client.get(f"/datasets/{dataset}/items?limit=9&cursor={first['next_cursor']}").json()
    assert [item["name"] for item in rest["items"]] == ["2.png", "3.png", "4.png"]


def test_a_frame_comes_back_as_it_was_sent(client: TestClient, dataset: str, pictures: Any) -> None:
    item = _item(client, dataset, "0.png")
    answer = client.get(f"/datasets/{dataset}/items/{item['id']}/image?format=png")
    assert answer.headers["content-type"] == "image/png"
    sent = _picture(pictures.frame(0))
    np.testing.assert_array_equal(_picture(answer.content)[:, :, 0], sent)


def test_a_preview_has_the_size_asked_for_and_never_grows(client: TestClient, dataset: str) -> None:
    path = f"/datasets/{dataset}/items/{_item(client, dataset, '0.png')['id']}/image"
    small = client.get(f"{path}?max_side_px=48")
    assert small.headers["content-type"] == "image/jpeg"
    assert _picture(small.content).shape == (32, 48, 3)
    assert _picture(client.get(f"{path}?max_side_px=4000").content).shape == (64, 96, 3)


def test_a_mask_preview_shows_the_class_in_its_colour(client: TestClient, dataset: str) -> None:
    path = f"/datasets/{dataset}/items/{_item(client, dataset, '0.png')['id']}/mask"
    picture = _picture(client.get(f"{path}?format=png").content)
    marked = picture.any(axis=2)
    assert int(marked.sum()) == 200
    assert marked[20:30, 40:60].all()
    assert {tuple(pixel) for pixel in picture[marked].tolist()} == {(86, 180, 233)}


def test_an_overlay_outlines_the_defect_and_leaves_it_visible(
    client: TestClient, dataset: str, pictures: Any
) -> None:
    path = f"/datasets/{dataset}/items/{_item(client, dataset, '0.png')['id']}/overlay"
    picture = _picture(client.get(f"{path}?format=png").content)
    frame = _picture(pictures.frame(0))
    np.testing.assert_array_equal(picture[20:30, 40:60, 0], frame[20:30, 40:60])
    assert picture[19, 40:60].tolist() == [[86, 180, 233]] * 20
    np.testing.assert_array_equal(picture[:18, :, 0], frame[:18])


def test_an_unlabelled_frame_has_no_mask(client: TestClient, dataset: str) -> None:
    item = _item(client, dataset, "4.png")
    answer = client.get(f"/datasets/{dataset}/items/{item['id']}/mask")
    assert (answer.status_code, answer.json()["code"]) == (404, "label_not_found")


def test_a_preview_that_has_not_changed_is_not_sent_again(client: TestClient, dataset: str) -> None:
    path = f"/datasets/{dataset}/items/{_item(client, dataset, '0.png')['id']}/overlay"
    tag = client.get(path).headers["ETag"]
    assert client.get(path, headers={"If-None-Match": tag}).status_code == 304
    assert client.get(f"{path}?max_side_px=50", headers={"If-None-Match": tag}).status_code == 200


def test_a_deleted_frame_may_be_uploaded_again(
    client: TestClient, dataset: str, pictures: Any
) -> None:
    item = _item(client, dataset, "0.png")
    assert client.delete(f"/datasets/{dataset}/items/{item['id']}").status_code == 204
    assert client.get(f"/datasets/{dataset}/items/{item['id']}").status_code == 404
    assert client.get(f"/datasets/{dataset}/labels").json()["items"][0]["name"] == "1.json"
    again = client.post(
        f"/datasets/{dataset}/images", files=[("files", ("0.png", pictures.frame(0)))]
    )
    assert again.json()["counts"] == {"accepted": 1}


def test_a_frames_label_can_be_deleted_alone(client: TestClient, dataset: str) -> None:
    path = f"/datasets/{dataset}/items/{_item(client, dataset, '0.png')['id']}"
    assert client.delete(f"{path}/label").status_code == 204
    assert client.get(path).json()["label"] is None
    assert client.delete(f"{path}/label").json()["code"] == "label_not_found"


def test_a_frame_belongs_to_its_data_set(client: TestClient, dataset: str) -> None:
    item = _item(client, dataset, "0.png")
    other = client.post("/datasets", json={"name": "other", "task": "segmentation"}).json()["id"]
    for path in ("", "/image", "/overlay"):
        answer = client.get(f"/datasets/{other}/items/{item['id']}{path}")
        assert (answer.status_code, answer.json()["code"]) == (404, "item_not_found")
    assert client.delete(f"/datasets/{other}/items/{item['id']}").status_code == 404
    label = item["label"]["id"]
    assert client.delete(f"/datasets/{other}/labels/{label}").status_code == 404
