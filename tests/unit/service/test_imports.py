import io
import os
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine, event, func, select, update

from service.database.engine import session_factory
from service.database.tables import Import, Item
from service.datasets.imports import clear_archives, queue_import, run_import
from service.datasets.repository import create_dataset
from service.errors import NotFound
from service.settings import Settings
from service.storage import Storage


def _zip(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def _tar_gz(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def files(pictures: Any) -> dict[str, bytes]:
    # Labels come first in the archive: their frames must find them all the same.
    labels = {f"set/masks/{n}.png": pictures.mask() for n in range(4)}
    return labels | {f"set/images/{n}.png": pictures.frame(n) for n in range(4)}


@pytest.fixture
def dataset(engine: Engine) -> str:
    with session_factory(engine).begin() as session:
        return create_dataset(session, name="rings", task="segmentation", classes=None).id


def _read(engine: Engine, import_id: str) -> Import:
    with session_factory(engine, writes=False)() as session:
        return session.get_one(Import, import_id)


def _frames(engine: Engine) -> int:
    with session_factory(engine, writes=False)() as session:
        return session.scalar(select(func.count()).select_from(Item)) or 0


@pytest.mark.parametrize("pack", [_zip, _tar_gz])
def test_an_archive_becomes_frames_with_labels(
    client: TestClient,
    engine: Engine,
    storage: Storage,
    settings: Settings,
    files: dict[str, bytes],
    pack: Any,
) -> None:
    dataset = client.post("/datasets", json={"name": "a", "task": "segmentation"}).json()["id"]
    answer = client.put(f"/datasets/{dataset}/archive", content=pack(files))
    assert answer.status_code == 202
    queued = answer.json()["import"]
    assert (queued["status"], queued["done"], queued["total"]) == ("queued", 0, 8)
    run_import(engine, storage, settings, queued["id"])
    ended = client.get(answer.headers["Location"]).json()
    assert (ended["status"], ended["done"], ended["rejected"]) == ("succeeded", 8, [])
    assert client.get(f"/datasets/{dataset}").json()["counts"]["labelled"] == 4
    assert list(storage.spool_dir.iterdir()) == []


def test_what_is_wrong_in_an_archive_is_listed_and_the_rest_is_kept(
    client: TestClient,
    engine: Engine,
    storage: Storage,
    settings: Settings,
    files: dict[str, bytes],
) -> None:
    dataset = client.post("/datasets", json={"name": "a", "task": "segmentation"}).json()["id"]
    bad = files | {"set/images/bad.png": b"no picture", "notes.txt": b"hello"}
    litter = {"__MACOSX/set/images/._0.png": b"\0", "set/.DS_Store": b"\0"}
    answer = client.put(f"/datasets/{dataset}/archive", content=_zip(bad | litter))
    run_import(engine, storage, settings, answer.json()["import"]["id"])
    ended = client.get(answer.headers["Location"]).json()
    assert (ended["status"], ended["done"]) == ("succeeded_with_problems", 10)
    assert [(file["file"], file["code"]) for file in ended["rejected"]] == [
        ("set/images/bad.png", "image_unknown_format"),
        ("notes.txt", "unsupported_file"),
    ]
    assert all(file["where"] and file["hint"] for file in ended["rejected"])
    assert client.get(f"/datasets/{dataset}").json()["counts"]["labelled"] == 4


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "archive_empty"),
        (_zip({}), "archive_empty"),
        (_tar_gz({}), "archive_empty"),
        (_zip({"__MACOSX/._a": b"x"}), "archive_empty"),
        (b"this is no archive", "archive_damaged"),
        (_zip({"a.png": b"x" * 5000})[:-40], "archive_damaged"),
        (_tar_gz({"a.png": os.urandom(5000)})[:-900], "archive_damaged"),
    ],
    ids=["nothing", "zip", "tar", "zip of a Mac", "text", "cut zip", "cut tar"],
)
def test_an_empty_or_damaged_archive_is_refused_and_leaves_nothing(
    client: TestClient, storage: Storage, engine: Engine, content: bytes, code: str
) -> None:
    dataset = client.post("/datasets", json={"name": "a", "task": "segmentation"}).json()["id"]
    answer = client.put(f"/datasets/{dataset}/archive", content=content)
    problem = answer.json()
    assert (answer.status_code, problem["code"], problem["file"]) == (422, code, "archive")
    assert problem["where"]
    assert problem["hint"]
    assert list(storage.spool_dir.iterdir()) == []
    with session_factory(engine, writes=False)() as session:
        assert session.scalars(select(Import)).all() == []


def test_an_archive_above_the_limit_is_refused_while_it_arrives(
    engine: Engine, settings: Settings, files: dict[str, bytes]
) -> None:
    from service.api.app import create_app

    small = settings.model_copy(update={"max_archive_bytes": 1000})
    with TestClient(create_app(small)) as client:
        dataset = client.post("/datasets", json={"name": "a", "task": "segmentation"}).json()["id"]
        answer = client.put(f"/datasets/{dataset}/archive", content=_zip(files))
    assert (answer.status_code, answer.json()["code"]) == (413, "archive_too_large")
    assert list(Storage(settings.storage_dir).spool_dir.iterdir()) == []


_KILLED_AFTER_THREE_FRAMES = """
import os, signal, sys
from pathlib import Path
from sqlalchemy import event
from service.database.engine import open_engine
from service.datasets.imports import run_import
from service.settings import Settings
from service.storage import Storage

settings = Settings(storage_dir=Path(sys.argv[1]))
engine = open_engine(settings)
inserted = 0

def count(connection, cursor, statement, *rest):
    global inserted
    inserted += statement.startswith("INSERT INTO items")
    if inserted == 4:
        os.kill(os.getpid(), signal.SIGKILL)

event.listen(engine, "after_cursor_execute", count)
run_import(engine, Storage(settings.storage_dir), settings, sys.argv[2])
"""


def test_an_import_that_was_killed_is_completed_by_running_it_again(
    engine: Engine, storage: Storage, settings: Settings, dataset: str, files: dict[str, bytes]
) -> None:
    row = queue_import(engine, storage, settings, dataset, [_zip(files)])
    program = _KILLED_AFTER_THREE_FRAMES
    command = [sys.executable, "-c", program, str(settings.storage_dir), row.id]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert _frames(engine) == 3
    assert storage.archive_path(row.id).exists()
    run_import(engine, storage, settings, row.id)
    ended = _read(engine, row.id)
    assert (ended.status, ended.done, ended.outcomes) == ("succeeded", 8, [])
    assert _frames(engine) == 4


def test_an_import_goes_on_behind_the_progress_it_finds(
    engine: Engine, storage: Storage, settings: Settings, dataset: str, files: dict[str, bytes]
) -> None:
    row = queue_import(engine, storage, settings, dataset, [_zip(files)])
    with session_factory(engine).begin() as session:
        session.execute(
            update(Import).values(done=2, outcomes=[{"file": "x", "outcome": "rejected"}])
        )
    run_import(engine, storage, settings, row.id)
    ended = _read(engine, row.id)
    assert (ended.status, ended.done) == ("succeeded_with_problems", 8)
    assert _frames(engine) == 2


def test_a_worker_that_lost_an_import_leaves_it_to_its_new_owner(
    engine: Engine, storage: Storage, settings: Settings, dataset: str, files: dict[str, bytes]
) -> None:
    row = queue_import(engine, storage, settings, dataset, [_zip(files)])

    def take_over(*arguments: Any) -> None:
        if arguments[2].startswith("INSERT INTO labels"):
            arguments[1].execute("UPDATE imports SET owner = 'wrk_other'")

    with session_factory(engine).begin() as session:
        session.execute(update(Import).values(status="running", owner="wrk_first"))
    event.listen(engine, "before_cursor_execute", take_over)
    run_import(engine, storage, settings, row.id)
    left = _read(engine, row.id)
    assert (left.status, left.owner) == ("running", "wrk_other")
    assert storage.archive_path(row.id).exists()


def test_an_archive_that_vanished_fails_its_import_in_plain_words(
    engine: Engine, storage: Storage, settings: Settings, dataset: str, files: dict[str, bytes]
) -> None:
    row = queue_import(engine, storage, settings, dataset, [_zip(files)])
    storage.archive_path(row.id).unlink()
    run_import(engine, storage, settings, row.id)
    ended = _read(engine, row.id)
    assert ended.status == "failed"
    assert ended.error is not None
    assert ended.error["code"] == "file_unreadable"


def test_an_import_that_has_ended_is_not_run_again(
    engine: Engine, storage: Storage, settings: Settings, dataset: str, files: dict[str, bytes]
) -> None:
    row = queue_import(engine, storage, settings, dataset, [_zip(files)])
    run_import(engine, storage, settings, row.id)
    with pytest.raises(NotFound):
        run_import(engine, storage, settings, row.id)


def test_only_archives_that_nobody_waits_for_are_cleared(
    engine: Engine, storage: Storage, settings: Settings, dataset: str, files: dict[str, bytes]
) -> None:
    row = queue_import(engine, storage, settings, dataset, [_zip(files)])
    orphan = storage.spool_dir / "imp_0000000000000000.archive"
    orphan.write_bytes(b"left by a kill")
    assert (
        clear_archives(
            engine, storage, older_than=time.time() + 1, unfinished_older_than=time.time() - 1
        )
        == 1
    )
    assert storage.archive_path(row.id).exists()
    assert not orphan.exists()


def test_an_import_belongs_to_its_data_set(client: TestClient, files: dict[str, bytes]) -> None:
    dataset = client.post("/datasets", json={"name": "a", "task": "segmentation"}).json()["id"]
    answer = client.put(f"/datasets/{dataset}/archive", content=_zip(files))
    import_id = answer.json()["import"]["id"]
    assert client.get(f"/datasets/ds_other/imports/{import_id}").status_code == 404
    assert client.put("/datasets/ds_other/archive", content=_zip(files)).status_code == 404
