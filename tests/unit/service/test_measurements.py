import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine, select, update

from data import Manifest
from service.database.engine import session_factory
from service.database.tables import Measurement
from service.datasets.health import examine
from service.datasets.health_page import render_page
from service.datasets.measurements import FrameMeasurer, MeasuredVersion, look_up, stored_files
from service.storage import Storage

COUNT = 20


@pytest.fixture
def version(client: TestClient, pictures: Any) -> dict[str, Any]:
    """Frames with masks, frozen and not measured."""
    dataset = client.post("/datasets", json={"name": "rings", "task": "segmentation"}).json()["id"]
    files = []
    for seed in range(COUNT):
        files.append((f"images/a{seed}.png", pictures.frame(seed)))
        files.append((f"masks/a{seed}.png", pictures.mask()))
    parts = [("files", file) for file in files]
    assert client.post(f"/datasets/{dataset}/images", files=parts).status_code == 201
    frozen: dict[str, Any] = client.post(f"/datasets/{dataset}/versions", json={}).json()
    return frozen


@pytest.fixture
def measurer(engine: Engine, storage: Storage) -> Iterator[FrameMeasurer]:
    measurer = FrameMeasurer(engine, storage)
    yield measurer
    measurer.close()


def manifest_of(storage: Storage, version: dict[str, Any]) -> Manifest:
    return Manifest.read(storage.manifest_path(version["digest"]))


def known(engine: Engine, storage: Storage, manifest: Manifest) -> MeasuredVersion:
    with session_factory(engine, writes=False)() as session:
        return look_up(session, storage, stored_files(manifest))


def codes(client: TestClient, version: dict[str, Any]) -> dict[str, Any]:
    answer = client.get(f"/versions/{version['id']}/health?wait_s=30").json()
    return {finding["code"]: finding for finding in answer["findings"]}


def test_a_report_that_does_not_wait_says_what_it_has_not_seen(
    engine: Engine, storage: Storage, version: dict[str, Any], measurer: FrameMeasurer
) -> None:
    held = threading.Event()
    # The threads are busy, so nothing can be measured before the report is given.
    for _ in range(2):
        measurer._pool.submit(held.wait)
    report = partial(examine, engine, storage, measurer, version["id"], stride_px=4)
    early = report(wait_s=0)
    assert early.measured == 0
    assert early.unchecked[0].startswith(f"{COUNT} of {COUNT} frames are not measured yet")
    assert early.unchecked[1].startswith(f"{COUNT} masks are not verified yet")
    page = render_page(early, storage)
    assert f"0 of {COUNT} frames are measured" in page
    assert 'http-equiv="refresh"' in page
    held.set()
    late = report(wait_s=30)
    assert late.measured == COUNT
    assert not any("not measured" in sentence for sentence in late.unchecked)
    assert "refresh" not in render_page(late, storage)


def test_what_is_asked_wrongly_is_refused(client: TestClient, version: dict[str, Any]) -> None:
    assert client.get("/versions/ver_0/health").status_code == 404
    assert client.get(f"/versions/{version['id']}/health?wait_s=31").status_code == 422
    client.app.state.measurer.close()  # type: ignore[attr-defined]
    stopping = client.get(f"/versions/{version['id']}/health")
    assert (stopping.status_code, stopping.json()["code"]) == (503, "stopping")


def test_each_file_is_measured_once(
    engine: Engine, storage: Storage, version: dict[str, Any], measurer: FrameMeasurer
) -> None:
    manifest = manifest_of(storage, version)
    before = known(engine, storage, manifest)
    assert len(before.pending) == 2 * COUNT
    assert before.oldest is None
    measurer.measure(before.pending[:3], wait_s=30)
    some = known(engine, storage, manifest)
    assert (len(some.frames), len(some.pending)) == (3, 2 * COUNT - 3)
    measurer.measure(some.pending, wait_s=30)
    after = known(engine, storage, manifest)
    assert (len(after.frames), after.pending) == (COUNT, ())
    # All masks are one file.
    with session_factory(engine, writes=False)() as session:
        assert len(session.scalars(select(Measurement)).all()) == COUNT + 1


def test_a_file_that_was_touched_is_read_again_and_no_other_is(
    client: TestClient, engine: Engine, storage: Storage, version: dict[str, Any]
) -> None:
    assert "unreadable_frames" not in codes(client, version)
    item = manifest_of(storage, version).items[0]
    path = storage.root / item.file
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"?")
    found = codes(client, version)["unreadable_frames"]
    assert found["examples"] == [
        f"{item.name}: The file is not the one that the data-set version was made from."
    ]
    path.unlink()
    assert "gone" in codes(client, version)["unreadable_frames"]["examples"][0]
    path.write_bytes(content)
    assert "unreadable_frames" not in codes(client, version)


def test_what_another_way_of_measuring_left_is_measured_again(
    client: TestClient, engine: Engine, storage: Storage, version: dict[str, Any]
) -> None:
    codes(client, version)
    with session_factory(engine).begin() as session:
        session.execute(update(Measurement).values(method=0))
    assert len(known(engine, storage, manifest_of(storage, version)).pending) == 2 * COUNT
    codes(client, version)
    assert known(engine, storage, manifest_of(storage, version)).pending == ()


def test_a_file_that_could_not_be_read_for_once_is_tried_again(
    client: TestClient, engine: Engine, version: dict[str, Any]
) -> None:
    codes(client, version)
    error = {"code": "file_unreadable", "detail": "The file can't be read: Input/output error."}
    with session_factory(engine).begin() as session:
        session.execute(update(Measurement).values(error=error, numbers=None))
    assert not {"unreadable_frames", "unreadable_labels"} & codes(client, version).keys()


def test_a_file_that_the_disk_refuses_is_named(
    client: TestClient, storage: Storage, version: dict[str, Any]
) -> None:
    path = storage.root / manifest_of(storage, version).items[0].file
    path.unlink()
    path.symlink_to(path.name)
    example = codes(client, version)["unreadable_frames"]["examples"][0]
    assert "can't be read: Too many levels of symbolic links" in example


def test_closing_leaves_what_has_not_begun(
    engine: Engine, storage: Storage, version: dict[str, Any], measurer: FrameMeasurer
) -> None:
    files = known(engine, storage, manifest_of(storage, version)).pending
    measurer.measure(files, wait_s=0)
    measurer.close()
    left = known(engine, storage, manifest_of(storage, version))
    assert len(left.frames) + len(left.pending) >= COUNT
    again = FrameMeasurer(engine, storage)
    again.measure(left.pending, wait_s=30)
    again.close()
    assert known(engine, storage, manifest_of(storage, version)).pending == ()


def test_a_browser_gets_a_page_and_a_program_gets_json(
    client: TestClient, version: dict[str, Any]
) -> None:
    path = f"/versions/{version['id']}/health"
    browser = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    page = client.get(path, headers=browser)
    assert page.headers["Content-Type"].startswith("text/html")
    assert client.get(path, headers={"Accept": "*/*"}).json()["page"] == f"{path}?format=html"
    both = {"Accept": "application/json, text/html"}
    assert client.get(path, headers=both).headers["Content-Type"] == "application/json"
    assert client.get(f"{path}?format=json", headers=browser).json()["version"] == version["id"]


def test_a_name_in_the_page_is_text_and_never_markup(client: TestClient, pictures: Any) -> None:
    dataset = client.post(
        "/datasets", json={"name": "x", "task": "segmentation", "classes": ["<b>pit</b>"]}
    ).json()["id"]
    files = []
    for seed in range(6):
        files.append((f"images/a&{seed}.png", pictures.frame(seed)))
        files.append((f"masks/a&{seed}.png", pictures.mask()))
    parts = [("files", file) for file in files]
    assert client.post(f"/datasets/{dataset}/images", files=parts).status_code == 201
    version = client.post(f"/datasets/{dataset}/versions", json={}).json()["id"]
    page = client.get(f"/versions/{version}/health?format=html").text
    assert "&lt;b&gt;pit&lt;/b&gt;" in page
    assert "<b>pit" not in page
