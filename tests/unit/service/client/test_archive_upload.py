"""The client's way of sending an archive, against the real API in a thread."""

import os
import socket
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, select, update
from typer.testing import CliRunner

from benchmarks.data.relay import Relay
from service.api import imports
from service.cli import app
from service.client import HairlineClient, HairlineError
from service.client.archive_upload import PIECE_BYTES, file_state, upload_key
from service.database.engine import session_factory
from service.database.tables import Import
from service.datasets.imports import run_import
from service.settings import Settings
from service.storage import Storage

PATIENCE_S = 30.0


@pytest.fixture
def archive(tmp_path: Path, pictures: Any) -> Path:
    path = tmp_path / "frames.zip"
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("images/0.png", pictures.frame(0))
        # Three pieces; it is rejected later, which is no matter here.
        packed.writestr("noise.bin", os.urandom(2 * PIECE_BYTES))
    return path


def dataset_of(client: HairlineClient) -> str:
    return client.create_dataset("rings").id


def test_an_archive_is_sent_in_pieces_with_progress(port: int, archive: Path) -> None:
    shown: list[tuple[int, int]] = []
    with HairlineClient(f"http://127.0.0.1:{port}") as client:
        dataset_id = dataset_of(client)
        sent = client.upload_archive(
            dataset_id, archive, progress=lambda done, total: shown.append((done, total))
        )
    size = archive.stat().st_size
    assert sent.sent_bytes == size
    assert (sent.queued.status, sent.queued.total) == ("queued", 2)
    assert shown[0] == (0, size)
    assert shown[-1] == (size, size)
    assert len(shown) > 10
    assert shown == sorted(shown)


def test_an_archive_that_is_there_is_not_sent_again(port: int, archive: Path) -> None:
    with HairlineClient(f"http://127.0.0.1:{port}") as client:
        dataset_id = dataset_of(client)
        first = client.upload_archive(dataset_id, archive)
        again = client.upload_archive(dataset_id, archive)
        assert (again.sent_bytes, again.queued.id) == (0, first.queued.id)
        os.utime(archive, ns=(0, 0))
        touched = client.upload_archive(dataset_id, archive)
    assert touched.sent_bytes == archive.stat().st_size
    assert touched.queued.id != first.queued.id


def test_an_archive_whose_import_failed_is_sent_again(
    port: int, archive: Path, engine: Engine
) -> None:
    with HairlineClient(f"http://127.0.0.1:{port}") as client:
        dataset_id = dataset_of(client)
        first = client.upload_archive(dataset_id, archive)
        with session_factory(engine).begin() as session:
            session.execute(update(Import).values(status="failed"))
        again = client.upload_archive(dataset_id, archive)
    assert again.queued.id != first.queued.id
    assert again.sent_bytes == archive.stat().st_size


def test_an_archive_whose_layout_is_named_later_is_not_sent_again(
    port: int, tmp_path: Path, pictures: Any, engine: Engine, settings: Settings, storage: Storage
) -> None:
    path = tmp_path / "both.zip"
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("images/a.png", pictures.frame(0))
        packed.writestr("masks/a.png", pictures.mask())
        packed.writestr("annotations/a.json", pictures.labelme("a.png"))
    with HairlineClient(f"http://127.0.0.1:{port}") as client:
        dataset_id = dataset_of(client)
        first = client.upload_archive(dataset_id, path)
        run_import(engine, storage, settings, first.queued.id)
        unnamed = client.upload_archive(dataset_id, path)
        assert (unnamed.queued.id, unnamed.sent_bytes) == (first.queued.id, 0)
        named = client.upload_archive(dataset_id, path, layout="labelme")
        assert (named.queued.id, named.sent_bytes) == (first.queued.id, 0)
        assert named.queued.status == "queued"
        run_import(engine, storage, settings, first.queued.id)
        assert client.archive_import(dataset_id, first.queued.id).status == "succeeded"
        with session_factory(engine).begin() as session:
            error = {"code": "layout_ambiguous", "detail": "x"}
            session.execute(update(Import).values(status="failed", error=error))
        again = client.upload_archive(dataset_id, path, layout="labelme")
        assert again.sent_bytes == path.stat().st_size, "its archive is no longer there"


def test_a_connection_that_is_cut_costs_no_more_than_a_piece(port: int, archive: Path) -> None:
    size = archive.stat().st_size

    def cut() -> None:
        raise ConnectionResetError

    relay = Relay(port, [(PIECE_BYTES + PIECE_BYTES // 2, cut)])
    with HairlineClient(relay.url) as client:
        sent = client.upload_archive(dataset_of(client), archive)
    relay.close()
    assert relay.triggers_left == 0
    assert sent.queued.status == "queued"
    assert size < relay.sent_bytes < size + PIECE_BYTES + 64 * 1024


def test_a_piece_that_is_damaged_on_the_line_is_sent_again(
    port: int, archive: Path, storage: Storage
) -> None:
    size, seen = archive.stat().st_size, 0

    def damage(chunk: bytes) -> bytes:
        nonlocal seen
        place, seen = PIECE_BYTES + PIECE_BYTES // 2 - seen, seen + len(chunk)
        if not 0 <= place < len(chunk):
            return chunk
        return chunk[:place] + bytes([chunk[place] ^ 1]) + chunk[place + 1 :]

    relay = Relay(port, [], alter=damage)
    with HairlineClient(relay.url) as client:
        sent = client.upload_archive(dataset_of(client), archive)
    relay.close()
    assert sent.sent_bytes == size + PIECE_BYTES
    assert sent.queued.transfer is not None
    assert sent.queued.transfer.unverified_bytes == 0
    assert storage.archive_path(sent.queued.id).read_bytes() == archive.read_bytes()


def test_an_archive_that_changes_while_it_is_sent_is_given_up(port: int, archive: Path) -> None:
    def change(done: int, total: int) -> None:
        if 0 < done < total:
            os.utime(archive, ns=(0, 0))

    with HairlineClient(f"http://127.0.0.1:{port}") as client:
        dataset_id = dataset_of(client)
        with pytest.raises(OSError, match="was changed while it was sent"):
            client.upload_archive(dataset_id, archive, progress=change)


def test_a_sender_that_falls_silent_does_not_keep_others_from_going_on(
    port: int, archive: Path, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A minute in production: longer than any test should take.
    monkeypatch.setattr(imports, "_SILENCE_S", 1.0)
    size = archive.stat().st_size
    with HairlineClient(f"http://127.0.0.1:{port}") as client:
        dataset_id = dataset_of(client)
        request = (
            f"PUT /datasets/{dataset_id}/archive HTTP/1.1\r\nHost: hairline\r\n"
            f"Idempotency-Key: {upload_key(dataset_id, file_state(archive), 1)}\r\n"
            f"Content-Range: bytes 0-{size - 1}/{size}\r\nContent-Length: {size}\r\n\r\n"
        )
        with socket.create_connection(("127.0.0.1", port)) as silent:
            silent.sendall(request.encode() + archive.read_bytes()[:1000])
            while not list(storage.spool_dir.glob("*.upload")):
                time.sleep(0.01)
            sent = client.upload_archive(dataset_id, archive, patience_s=PATIENCE_S)
    assert sent.sent_bytes == size - 1000


def test_a_service_that_stays_away_is_reported_after_the_patience(archive: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with HairlineClient(url) as client, pytest.raises(HairlineError) as caught:
        client.upload_archive("ds_1", archive, patience_s=1.0)
    assert caught.value.code == "unreachable"


def test_what_waiting_does_not_cure_is_reported_at_once(port: int, tmp_path: Path) -> None:
    (tmp_path / "no.zip").write_bytes(b"this is no archive")
    (tmp_path / "empty.zip").touch()
    with HairlineClient(f"http://127.0.0.1:{port}") as client:
        dataset_id = dataset_of(client)
        for name, code in (("no.zip", "archive_damaged"), ("empty.zip", "archive_empty")):
            with pytest.raises(HairlineError) as caught:
                client.upload_archive(dataset_id, tmp_path / name)
            assert caught.value.code == code
        with pytest.raises(HairlineError) as caught:
            client.upload_archive("ds_other", tmp_path / "no.zip")
        assert caught.value.status == 404


def test_the_command_line_waits_for_the_import_and_names_what_was_rejected(
    port: int, archive: Path, engine: Engine, settings: Settings
) -> None:
    def work() -> None:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            with session_factory(engine, writes=False)() as session:
                queued = session.scalars(select(Import.id)).one_or_none()
            if queued is not None:
                run_import(engine, Storage(settings.storage_dir), settings, queued)
                return
            time.sleep(0.05)

    worker = threading.Thread(target=work)
    worker.start()
    command = ["upload", str(archive), "--dataset", "rings", "--url", f"http://127.0.0.1:{port}"]
    first = CliRunner().invoke(app, command)
    worker.join()
    assert first.exit_code == 1
    assert "took in 1 of 2 files" in first.stdout
    assert "noise.bin" in first.stderr
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 1
    assert "Nothing was sent: the archive was there by" in again.stdout
