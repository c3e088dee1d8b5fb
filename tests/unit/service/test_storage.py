import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import NotFound, StorageError
from service.storage import Storage


@settings(max_examples=30, deadline=None)
@given(content=st.binary(max_size=300), damaged=st.none() | st.binary(max_size=300))
def test_a_blob_holds_its_bytes_whatever_its_file_held(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, damaged: bytes | None
) -> None:
    storage = Storage(tmp_path_factory.mktemp("storage"))
    sha256 = hashlib.sha256(content).hexdigest()
    assert storage.put_blob(content, sha256) == "missing"
    path = storage.root / storage.blob_relative(sha256)
    if damaged is not None:
        path.write_bytes(damaged)
    found = storage.put_blob(content, sha256)
    assert found == ("whole" if damaged in (None, content) else "damaged")
    assert storage.read_blob(sha256) == path.read_bytes() == content


def test_the_same_content_is_kept_once(storage: Storage) -> None:
    sha256 = hashlib.sha256(b"abc").hexdigest()
    storage.put_blob(b"abc", sha256)
    inode = storage.blob_path(sha256).stat().st_ino
    assert storage.put_blob(b"abc", sha256) == "whole"
    assert storage.blob_path(sha256).stat().st_ino == inode


def test_a_single_byte_that_differs_far_inside_a_file_is_seen(storage: Storage) -> None:
    content = bytes(3 * 1024**2 + 7)
    sha256 = hashlib.sha256(content).hexdigest()
    storage.put_blob(content, sha256)
    with storage.blob_path(sha256).open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"x")
    assert storage.put_blob(content, sha256) == "damaged"
    assert storage.read_blob(sha256) == content


def test_an_archive_that_breaks_off_leaves_nothing(storage: Storage) -> None:
    def broken() -> Iterator[bytes]:
        yield b"half"
        raise EOFError("the sender went away")

    with pytest.raises(EOFError):
        storage.put_archive("imp_a", broken(), lambda path: path)
    assert [path for path in storage.root.rglob("*") if path.is_file()] == []


def test_a_process_killed_while_writing_leaves_no_blob(storage: Storage) -> None:
    program = (
        "import os, sys, time\nfrom pathlib import Path\nfrom service.storage import Storage\n"
        "def stay(_descriptor):\n"
        "    print('written', flush=True)\n"
        "    time.sleep(60)\n"
        "os.fsync = stay\n"
        "Storage(Path(sys.argv[1])).put_blob(b'x' * 1_000_000, '0' * 64)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, storage.root], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"written\n"
        os.kill(process.pid, signal.SIGKILL)
    assert list((storage.root / "blobs").rglob("*")) == []
    assert storage.clear_spool(older_than=time.time() + 1) == 1
    assert list(storage.spool_dir.iterdir()) == []


def test_recent_uploads_survive_the_clearing_of_the_spool(storage: Storage) -> None:
    (storage.spool_dir / "0.part").write_bytes(b"under way")
    assert storage.clear_spool(older_than=time.time() - 60) == 0
    assert (storage.spool_dir / "0.part").exists()


@pytest.mark.parametrize("identifier", ["../job", "job_", "job_..", "/etc", "job_a/b", ""])
def test_an_identifier_from_a_url_never_leaves_its_folder(
    storage: Storage, identifier: str
) -> None:
    with pytest.raises(NotFound):
        storage.run_dir(identifier)


def test_a_missing_blob_is_an_error_of_the_storage(storage: Storage) -> None:
    with pytest.raises(StorageError) as caught:
        storage.read_blob("0" * 64)
    assert caught.value.code == "storage_failed"
    assert caught.value.hint is not None


def test_a_full_disk_is_named_as_such(storage: Storage) -> None:
    with pytest.raises(StorageError) as caught:
        storage.put_manifest("0" * 64, lambda _path: _write_to_full_device())
    assert caught.value.code == "storage_full"
    assert not storage.manifest_path("0" * 64).exists()


def _write_to_full_device() -> None:
    with Path("/dev/full").open("wb", buffering=0) as device:
        device.write(b"x")


def test_a_manifest_appears_whole(storage: Storage) -> None:
    path = storage.put_manifest("a" * 64, lambda target: _write(target, b"{}\n"))
    assert path == storage.manifest_path("a" * 64)
    assert path.read_bytes() == b"{}\n"
    assert list(storage.spool_dir.iterdir()) == []


def test_the_same_manifest_again_replaces_a_damaged_one(storage: Storage) -> None:
    path = storage.put_manifest("a" * 64, lambda target: _write(target, b"{}\n"))
    path.write_bytes(b"{")
    storage.put_manifest("a" * 64, lambda target: _write(target, b"{}\n"))
    assert path.read_bytes() == b"{}\n"


def _write(target: Path, content: bytes) -> None:
    target.write_bytes(content)
