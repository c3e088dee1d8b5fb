import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from service.errors import Conflict, StorageError
from service.partial_uploads import SYNC_EVERY_BYTES, PartialUploads, import_ids_under_way
from service.storage import Storage

KEY = "rings.zip"


def test_pieces_become_the_file_and_its_digest(storage: Storage) -> None:
    uploads, content = PartialUploads(storage), os.urandom(1000)
    for start in range(0, 1000, 300):
        with uploads.open(KEY) as part:
            part.begin("ds_1", 1000, None)
            assert part.received == start
            part.append([content[start : start + 100], content[start + 100 : start + 300]])
    with uploads.open(KEY) as part:
        assert part.is_complete
        assert part.archive.read_bytes() == content
        assert part.digest() == hashlib.sha256(content).hexdigest()


def test_another_server_knows_the_digest_too(storage: Storage) -> None:
    content = os.urandom(1000)
    for start in (0, 500):
        with PartialUploads(storage).open(KEY) as part:
            part.begin("ds_1", 1000, None)
            part.append([content[start : start + 500]])
    with PartialUploads(storage).open(KEY) as part:
        assert part.digest() == hashlib.sha256(content).hexdigest()


def test_what_arrived_before_a_cut_is_kept(storage: Storage) -> None:
    def cut() -> Iterator[bytes]:
        yield b"abc"
        raise EOFError("the sender went away")

    uploads = PartialUploads(storage)
    with uploads.open(KEY) as part:
        part.begin("ds_1", 6, None)
        with pytest.raises(EOFError):
            part.append(cut())
    with uploads.open(KEY) as part:
        assert part.received == 3
        part.append([b"def"])
        assert part.archive.read_bytes() == b"abcdef"
        assert part.digest() == hashlib.sha256(b"abcdef").hexdigest()


_WRITES_UNTIL_KILLED = """
import sys, time
from pathlib import Path
from service.partial_uploads import SYNC_EVERY_BYTES, PartialUploads
from service.storage import Storage

def chunks():
    yield b"a" * SYNC_EVERY_BYTES
    yield b"b" * 1000
    print("under way", flush=True)
    time.sleep(60)

with PartialUploads(Storage(Path(sys.argv[1]))).open("rings.zip") as part:
    part.begin("ds_1", 2 * SYNC_EVERY_BYTES, None)
    part.append(chunks())
"""


def test_a_killed_server_leaves_a_valid_prefix_and_no_lock(storage: Storage) -> None:
    command = [sys.executable, "-c", _WRITES_UNTIL_KILLED, str(storage.root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"under way\n"
        with pytest.raises(Conflict) as caught, PartialUploads(storage).open(KEY):
            pass
        assert caught.value.code == "upload_busy"
        process.send_signal(signal.SIGKILL)
    with PartialUploads(storage).open(KEY) as part:
        assert part.received == SYNC_EVERY_BYTES
        part.append([b"c" * SYNC_EVERY_BYTES])
        assert part.archive.read_bytes() == b"a" * SYNC_EVERY_BYTES + b"c" * SYNC_EVERY_BYTES


def test_bytes_behind_the_recorded_length_are_not_trusted(storage: Storage) -> None:
    uploads = PartialUploads(storage)
    with uploads.open(KEY) as part:
        part.begin("ds_1", 6, None)
        part.append([b"abc"])
        with part.archive.open("ab") as file:
            file.write(b"\0\0\0\0\0\0")
    with uploads.open(KEY) as part:
        assert part.received == 3
        part.append([b"d"])
        assert part.archive.read_bytes() == b"abcd"


def test_two_writers_of_one_upload_are_never_interleaved(storage: Storage) -> None:
    uploads = PartialUploads(storage)
    with uploads.open(KEY), pytest.raises(Conflict) as caught, uploads.open(KEY):
        pass
    assert caught.value.code == "upload_busy"
    assert list(storage.spool_dir.iterdir()) == [], "a mere question leaves nothing"


@pytest.mark.parametrize(
    ("dataset_id", "total", "sha256"), [("ds_2", 6, None), ("ds_1", 7, None), ("ds_1", 6, "b" * 64)]
)
def test_another_file_under_the_same_key_is_refused(
    storage: Storage, dataset_id: str, total: int, sha256: str | None
) -> None:
    with PartialUploads(storage).open(KEY) as part:
        part.begin("ds_1", 6, "a" * 64)
        with pytest.raises(Conflict) as caught:
            part.begin(dataset_id, total, sha256)
    assert caught.value.code == "upload_differs"


def test_a_full_disk_keeps_what_arrived(storage: Storage) -> None:
    uploads = PartialUploads(storage)
    with uploads.open(KEY) as part:
        part.begin("ds_1", 200_000, None)
        archive = part.archive
        # The device answers every write with "no space left".
        archive.symlink_to("/dev/full")
        with pytest.raises(StorageError) as caught:
            part.append([b"a" * 100_000])
    assert caught.value.code == "storage_full"
    assert caught.value.hint is not None
    archive.unlink()
    with uploads.open(KEY) as part:
        assert part.received == 0
        part.append([b"a" * 200_000])
        assert part.is_complete


def test_an_archive_that_can_never_fit_is_refused_before_it_is_sent(storage: Storage) -> None:
    with PartialUploads(storage).open(KEY) as part:
        part.begin("ds_1", 10**17, None)
        with pytest.raises(StorageError) as caught:
            part.append([b"a"])
    assert caught.value.code == "storage_full"


def test_only_uploads_that_were_given_up_are_forgotten(storage: Storage) -> None:
    with PartialUploads(storage).open(KEY) as part:
        part.begin("ds_1", 6, None)
        import_id = part.begun().import_id
    assert import_ids_under_way(storage, older_than=time.time() - 60) == {import_id}
    assert import_ids_under_way(storage, older_than=time.time() + 60) == set()
    assert list(storage.spool_dir.iterdir()) == []
