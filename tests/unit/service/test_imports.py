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

from service.database.engine import open_engine, session_factory
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


_KILLED_AT_A_STATEMENT = """
import os, signal, sys
from pathlib import Path
from sqlalchemy import event
from service.database.engine import open_engine
from service.datasets.imports import run_import
from service.settings import Settings
from service.storage import Storage

settings = Settings(storage_dir=Path(sys.argv[1]))
engine = open_engine(settings)
seen = 0

def count(connection, cursor, statement, *rest):
    global seen
    seen += statement.startswith(sys.argv[3])
    if seen == int(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)

event.listen(engine, "after_cursor_execute", count)
run_import(engine, Storage(settings.storage_dir), settings, sys.argv[2])
"""


def _run_until_killed(settings: Settings, import_id: str, statement: str, count: int) -> None:
    arguments = [str(settings.storage_dir), import_id, statement, str(count)]
    command = [sys.executable, "-c", _KILLED_AT_A_STATEMENT, *arguments]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("pack", "statement", "count", "kept", "decoded"),
    [
        # The fourth frame's row is there, and its transaction is not committed.
        (_zip, "INSERT INTO items", 4, 3, 1),
        # All frames are rows, and of the labels one is.
        (_tar_gz, "INSERT INTO labels", 2, 5, 0),
    ],
)
def test_an_import_that_was_killed_goes_on_and_opens_no_file_that_is_a_row(
    engine: Engine,
    storage: Storage,
    settings: Settings,
    dataset: str,
    files: dict[str, bytes],
    caplog: pytest.LogCaptureFixture,
    pack: Any,
    statement: str,
    count: int,
    kept: int,
    decoded: int,
) -> None:
    row = queue_import(engine, storage, settings, dataset, [pack(files)])
    _run_until_killed(settings, row.id, statement, count)
    assert _read(engine, row.id).done == kept
    assert storage.archive_path(row.id).exists()
    with caplog.at_level("INFO"):
        run_import(engine, storage, settings, row.id)
    left = [*(f"set/images/{n}.png" for n in range(4)), *(f"set/masks/{n}.png" for n in range(4))]
    left_bytes = sum(len(files[name]) for name in left[kept:])
    read = f"read {8 - kept} files of {left_bytes} bytes from the archive, decoded {decoded} frames"
    assert read in caplog.text
    ended = _read(engine, row.id)
    assert (ended.status, ended.done, ended.outcomes) == ("succeeded", 8, [])
    assert _frames(engine) == 4


def test_a_frame_declared_good_is_never_a_row_without_its_label(
    engine: Engine,
    storage: Storage,
    settings: Settings,
    pictures: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with session_factory(engine).begin() as session:
        dataset = create_dataset(session, name="a", task="segmentation", classes=("pit",)).id
    set_files = {f"a/train/good/{n}.png": pictures.frame(n) for n in range(3)}
    set_files["a/test/pit/0.png"] = pictures.frame(9)
    set_files["a/ground_truth/pit/0_mask.png"] = pictures.mask()
    row = queue_import(engine, storage, settings, dataset, [_zip(set_files)])
    _run_until_killed(settings, row.id, "INSERT INTO labels", 2)
    with session_factory(engine, writes=False)() as session:
        assert [item.labelled for item in session.scalars(select(Item))] == [True]
    with caplog.at_level("INFO"):
        run_import(engine, storage, settings, row.id)
    assert "read 4 files" in caplog.text
    assert "decoded 3 frames" in caplog.text
    assert _read(engine, row.id).status == "succeeded"


def test_refused_files_before_a_kill_are_told_once(
    engine: Engine, storage: Storage, settings: Settings, dataset: str, files: dict[str, bytes]
) -> None:
    # Sorted among the frames by the archive's order: the refused one comes first.
    bad = {"set/images/bad.png": b"no picture"}
    row = queue_import(engine, storage, settings, dataset, [_zip(bad | files)])
    _run_until_killed(settings, row.id, "INSERT INTO items", 2)
    killed = _read(engine, row.id)
    assert (killed.done, len(killed.outcomes)) == (2, 1)
    run_import(engine, storage, settings, row.id)
    ended = _read(engine, row.id)
    assert (ended.status, ended.done) == ("succeeded_with_problems", 9)
    assert [outcome["file"] for outcome in ended.outcomes] == ["set/images/bad.png"]


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
    other = open_engine(settings)
    first = iter([True])

    def take_over(*arguments: Any) -> None:
        # Labels are asked for before a transaction that writes would keep the other one waiting.
        if "FROM labels" in arguments[2] and next(first, False):
            with session_factory(other).begin() as session:
                session.execute(update(Import).values(owner="wrk_other"))

    with session_factory(engine).begin() as session:
        session.execute(update(Import).values(status="running", owner="wrk_first"))
    event.listen(engine, "before_cursor_execute", take_over)
    run_import(engine, storage, settings, row.id)
    other.dispose()
    left = _read(engine, row.id)
    assert (left.status, left.owner, left.done) == ("running", "wrk_other", 0)
    assert _frames(engine) == 0, "what the one did not count, the other takes in"
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
