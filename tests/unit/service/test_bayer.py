"""A data set that declares raw Bayer frames: kept as they are, seen and frozen in colour."""

import io
from typing import Any

import imagecodecs
import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from sqlalchemy import Engine

from data import BAYER_PATTERNS, FrameDataset, Manifest
from service.datasets.imports import run_import
from service.settings import Settings
from service.storage import Storage
from tests.oracles.bayer import demosaiced, mosaic_of

# Left to right, as bright as 16 bits go in two channels, so that the preview's stretch keeps them.
STRIPES = ((65_535, 0, 13_107), (0, 65_535, 39_321), (26_214, 0, 65_535))
STRIPE_PX, HEIGHT = 32, 64


def seen(dtype: Any) -> Any:
    stripes = np.repeat(np.array(STRIPES), STRIPE_PX, axis=0)[None].repeat(HEIGHT, axis=0)
    return (stripes if dtype == np.uint16 else stripes // 257).astype(dtype)


def png(pixels: Any) -> bytes:
    return bytes(imagecodecs.png_encode(pixels))


def create(client: TestClient, bayer: str | None, name: str = "rings") -> str:
    body = {"name": name, "task": "segmentation", "classes": ["scratch"], "bayer": bayer}
    answer = client.post("/datasets", json=body)
    assert answer.status_code == 201, answer.text
    assert answer.json()["bayer"] == bayer
    return str(answer.json()["id"])


def send(client: TestClient, dataset: str, *files: tuple[str, bytes]) -> Any:
    return client.post(f"/datasets/{dataset}/images", files=[("files", file) for file in files])


def preview(client: TestClient, dataset: str, query: str, kind: str = "image") -> tuple[str, Any]:
    (item,) = client.get(f"/datasets/{dataset}/items").json()["items"]
    answer = client.get(f"/datasets/{dataset}/items/{item['id']}/{kind}?{query}")
    assert answer.status_code == 200, answer.text
    return answer.headers["ETag"], np.asarray(Image.open(io.BytesIO(answer.content))).astype(int)


@pytest.mark.parametrize("pattern", BAYER_PATTERNS)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_mosaic_is_kept_and_previewed_in_the_colours_that_the_camera_saw(
    client: TestClient, storage: Storage, pattern: str, dtype: Any
) -> None:
    dataset = create(client, pattern)
    raw = png(mosaic_of(seen(dtype), pattern))
    answer = send(client, dataset, ("a.png", raw))
    assert answer.status_code == 201, answer.text
    (outcome,) = answer.json()["files"]
    assert outcome["notes"] == [f"Bayer {pattern} demosaiced"]
    (item,) = client.get(f"/datasets/{dataset}/items").json()["items"]
    assert (item["channels"], item["bit_depth"]) == (3, 8 * dtype().itemsize)
    assert item["notes"] == [f"Bayer {pattern} demosaiced"]
    assert storage.read_blob(item["sha256"]) == raw
    for query, side_px in (("format=png", STRIPE_PX), ("format=png&max_side_px=48", 16)):
        _, picture = preview(client, dataset, query)
        for index, colour in enumerate(STRIPES):
            centre = picture[picture.shape[0] // 2, index * side_px + side_px // 2]
            np.testing.assert_allclose(centre, np.array(colour) / 257, atol=1)


def test_the_same_file_is_another_preview_under_another_declaration(client: TestClient) -> None:
    raw = png(mosaic_of(seen(np.uint8), "RGGB"))
    pictures = {}
    for bayer in ("RGGB", "BGGR", None):
        dataset = create(client, bayer, name=f"set {bayer}")
        assert send(client, dataset, ("a.png", raw)).status_code == 201
        pictures[bayer] = preview(client, dataset, "format=png")
    assert len({tag for tag, _ in pictures.values()}) == 3
    np.testing.assert_array_equal(
        pictures["RGGB"][1][2:-2, 2:30], pictures["BGGR"][1][2:-2, 2:30, ::-1]
    )
    assert (np.ptp(pictures[None][1], axis=2) == 0).all()


def fill(client: TestClient, dataset: str, pictures: Any) -> dict[str, Any]:
    """Upload mosaics under GRBG filters with their masks, and return them by name."""
    raw = {}
    for index in range(6):
        pixels = np.random.default_rng(index).integers(0, 2**16, (64, 96, 3), dtype=np.uint16)
        name = f"{index}.png"
        raw[name] = mosaic_of(pixels, "GRBG")
        files = ((name, png(raw[name])), (f"{index}_mask.png", pictures.mask()))
        assert send(client, dataset, *files).status_code == 201
    return raw


def test_a_frozen_version_carries_the_pattern_to_training(
    client: TestClient, storage: Storage, pictures: Any
) -> None:
    dataset = create(client, "GRBG")
    raw = fill(client, dataset, pictures)
    version = client.post(f"/datasets/{dataset}/versions", json={}).json()
    manifest = Manifest.read(storage.manifest_path(version["digest"]))
    assert manifest.bayer == "GRBG"
    frame = FrameDataset(manifest, storage.root, "train", seed=0).frame(0, epoch=0)
    np.testing.assert_array_equal(frame.pixels, demosaiced(raw[frame.name], "GRBG"))
    assert frame.mask.any()


def test_an_export_imported_under_the_same_pattern_is_the_same_version_and_else_another(
    client: TestClient, engine: Engine, settings: Settings, storage: Storage, pictures: Any
) -> None:
    first = create(client, "GRBG")
    fill(client, first, pictures)
    version = client.post(f"/datasets/{first}/versions", json={}).json()
    archive = client.get(f"/versions/{version['id']}/export?format=masks").content
    digests = {}
    for bayer in ("GRBG", "RGGB", None):
        dataset = create(client, bayer, name=f"again {bayer}")
        answer = client.put(f"/datasets/{dataset}/archive", content=archive)
        run_import(engine, storage, settings, answer.json()["import"]["id"])
        assert client.get(answer.headers["Location"]).json()["status"] == "succeeded"
        again = client.post(f"/datasets/{dataset}/versions", json={}).json()
        digests[bayer] = again["digest"]
    assert digests["GRBG"] == version["digest"]
    assert len(set(digests.values())) == 3


def test_ordinary_pictures_are_refused_and_the_mosaics_beside_them_kept(client: TestClient) -> None:
    dataset = create(client, "RGGB")
    colour = seen(np.uint8)
    answer = send(
        client,
        dataset,
        ("a.png", png(mosaic_of(colour, "RGGB"))),
        ("b.png", png(colour)),
    )
    assert answer.status_code == 422
    kept, refused = answer.json()["files"]
    assert kept["outcome"] == "accepted"
    assert (refused["file"], refused["code"]) == ("b.png", "bayer_colour")
    assert client.get(f"/datasets/{dataset}").json()["counts"]["items"] == 1


@pytest.mark.parametrize("pattern", ["RGB", "rggb", "", 4])
def test_a_pattern_that_no_sensor_has_is_refused(client: TestClient, pattern: Any) -> None:
    body = {"name": "rings", "task": "segmentation", "bayer": pattern}
    answer = client.post("/datasets", json=body)
    assert (answer.status_code, answer.json()["where"]) == (422, "/bayer")
    assert "RGGB" in answer.json()["detail"]
