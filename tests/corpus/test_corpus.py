"""Every broken input meets the real API: a 4xx with code, file, place and remedy, no remains."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine

from service.api.app import create_app
from service.database import migrate
from service.database.engine import open_engine
from service.datasets.imports import CURED_BY_A_LAYOUT, run_import
from service.settings import Settings
from service.storage import Storage
from tests.corpus.archives import BROKEN_ARCHIVES
from tests.corpus.entries import MONO, BrokenArchive, BrokenFile, png
from tests.corpus.labels import BROKEN_LABELS
from tests.corpus.layouts import BROKEN_LAYOUTS, BrokenLayout
from tests.corpus.many_frames import BROKEN_MANY_FRAMES
from tests.corpus.pictures import BROKEN_NAMES, BROKEN_PICTURES, TOLERATED

BROKEN_FILES = BROKEN_PICTURES | BROKEN_NAMES | BROKEN_LABELS | BROKEN_MANY_FRAMES

# What no single upload can provoke, and the tests that do.
COVERED_ELSEWHERE = {
    # A buffer comes to /predict alone and never into a data set.
    "data/test_camera_buffers.py": {
        "bayer_not_declared",
        "bayer_other_pattern",
        "buffer_size_mismatch",
        "pixel_format_unknown",
        "stride_too_small",
    },
    "data/test_coco.py": {"label_of_many_frames", "mask_store_needed"},
    "data/test_export.py": {"export_unfit"},
    "data/test_labels.py": {"file_missing", "label_missing"},
    "service/test_imports.py": {"file_unreadable"},
    "data/test_folder.py": {
        "classes_needed",
        "duplicate_image",
        "duplicate_key",
        "duplicate_label",
        "folder_missing",
        "folder_outside_root",
        "label_without_image",
        "missing_label",
        "no_images",
    },
    "data/test_split.py": {
        "group_pattern_invalid",
        "group_pattern_mismatch",
        "split_shares",
        "too_few_groups",
    },
    "data/test_manifest.py": {
        "manifest_cut_off",
        "manifest_inconsistent",
        "manifest_line",
        "manifest_unreadable",
    },
    "data/test_dataset.py": {"file_changed", "image_size_mismatch"},
}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(storage_dir=tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def engine(settings: Settings) -> Iterator[Engine]:
    engine = open_engine(settings)
    migrate.upgrade(engine)
    yield engine
    engine.dispose()


@pytest.fixture(scope="module")
def client(settings: Settings, engine: Engine) -> Iterator[TestClient]:
    # Errors that nobody caught would otherwise reach the test instead of answering 500.
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def dataset(client: TestClient, request: pytest.FixtureRequest) -> str:
    entry = request.node.callspec.params.get("entry")
    declared = {name: getattr(entry, name, None) for name in ("classes", "bayer")}
    body = {"name": request.node.callspec.id, "task": "segmentation", **declared}
    return str(client.post("/datasets", json=body).json()["id"])


def _send(client: TestClient, dataset: str, name: str, content: bytes) -> Any:
    return client.post(f"/datasets/{dataset}/images", files=[("files", (name, content))])


def _stored(settings: Settings) -> set[Path]:
    """Return every file of the installation but the database's own."""
    files = (path for path in settings.storage_dir.rglob("*") if path.is_file())
    return {path for path in files if ".sqlite3" not in path.name}


def _counts(client: TestClient, dataset: str) -> tuple[int, int]:
    counts = client.get(f"/datasets/{dataset}").json()["counts"]
    labels = client.get(f"/datasets/{dataset}/labels").json()["items"]
    return counts["items"], len(labels)


@pytest.mark.parametrize("entry", BROKEN_FILES.values(), ids=BROKEN_FILES)
def test_a_broken_file_is_refused_with_its_place_and_remedy_and_leaves_nothing(
    client: TestClient, settings: Settings, dataset: str, entry: BrokenFile
) -> None:
    if entry.frame is not None:
        assert _send(client, dataset, entry.frame, png(MONO)).status_code == 201
    before = _stored(settings), _counts(client, dataset)
    answer = _send(client, dataset, entry.name, entry.content)
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (422, entry.code), problem["detail"]
    (outcome,) = problem["files"]
    assert (outcome["outcome"], outcome["code"]) == ("rejected", entry.code)
    assert outcome["file"] == entry.name[:300]
    assert outcome["where"] == entry.where
    assert entry.hint in outcome["hint"]
    assert outcome["detail"].endswith((".", "!"))
    assert (_stored(settings), _counts(client, dataset)) == before


@pytest.mark.parametrize("entry", BROKEN_ARCHIVES.values(), ids=BROKEN_ARCHIVES)
def test_a_broken_archive_is_refused_whole_or_by_member_and_leaves_nothing(
    client: TestClient,
    engine: Engine,
    settings: Settings,
    dataset: str,
    entry: BrokenArchive,
) -> None:
    storage = Storage(settings.storage_dir)
    answer = client.put(f"/datasets/{dataset}/archive", content=entry.build())
    found = answer.json()
    if entry.member is None:
        assert (answer.status_code, found["code"]) == (422, entry.code), found
        assert found["file"] == "archive"
    else:
        assert answer.status_code == 202, found
        run_import(engine, storage, settings, found["import"]["id"])
        ended = client.get(answer.headers["Location"]).json()
        assert ended["status"] == "succeeded_with_problems"
        (found,) = [file for file in ended["rejected"] if file["file"] == entry.member]
        assert found["code"] == entry.code, found
    assert found["where"] == entry.where
    assert entry.hint in found["hint"]
    assert _counts(client, dataset) == (entry.kept, 0)
    assert list(storage.spool_dir.iterdir()) == []


@pytest.mark.parametrize("entry", BROKEN_LAYOUTS.values(), ids=BROKEN_LAYOUTS)
def test_an_archive_of_a_broken_layout_fails_before_any_file_is_taken_in(
    client: TestClient, engine: Engine, settings: Settings, dataset: str, entry: BrokenLayout
) -> None:
    storage, query = Storage(settings.storage_dir), {"layout": entry.layout}
    path = f"/datasets/{dataset}/archive"
    answer = client.put(path, content=entry.content, params=query if entry.layout else None)
    assert answer.status_code == 202, answer.text
    before = _stored(settings)
    run_import(engine, storage, settings, answer.json()["import"]["id"])
    ended = client.get(answer.headers["Location"]).json()
    assert ended["status"] == "failed"
    error = ended["error"]
    assert (error["code"], error["file"], error["where"]) == (entry.code, entry.file, entry.where)
    assert entry.hint in error["hint"]
    assert _counts(client, dataset) == (0, 0)
    # An archive of which only the layout must be named waits for that.
    archive = storage.archive_path(ended["id"])
    waiting = {archive} if entry.code in CURED_BY_A_LAYOUT else set()
    assert _stored(settings) == before - {archive} | waiting
    archive.unlink(missing_ok=True)
    assert list(storage.spool_dir.iterdir()) == []


@pytest.mark.parametrize(("name", "content", "notes"), TOLERATED.values(), ids=TOLERATED)
def test_what_only_looks_broken_is_read_and_what_was_assumed_is_told(
    client: TestClient, dataset: str, name: str, content: bytes, notes: list[str]
) -> None:
    answer = _send(client, dataset, name, content)
    assert answer.status_code == 201, answer.text
    assert answer.json()["files"][0]["notes"] == notes


def test_the_corpus_covers_every_documented_code() -> None:
    assert len(BROKEN_FILES) + len(BROKEN_ARCHIVES) >= 60
    root = Path(__file__).resolve().parents[2]
    errors = (root / "docs" / "data-errors.md").read_text()
    documented = set(re.findall(r"^\| `([a-z_]+)` \|", errors, flags=re.MULTILINE))
    covered = {file.code for file in BROKEN_FILES.values()}
    covered |= {archive.code for archive in BROKEN_ARCHIVES.values()}
    covered |= {archive.code for archive in BROKEN_LAYOUTS.values()}
    elsewhere = set().union(*COVERED_ELSEWHERE.values())
    assert documented - covered - elsewhere == set()
    for file, codes in COVERED_ELSEWHERE.items():
        text = (root / "tests" / "unit" / file).read_text()
        assert {code for code in codes if code not in text} == set(), file
