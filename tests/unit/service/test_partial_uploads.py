import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from service.errors import Conflict, InvalidRequest, StorageError
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
        assert part.whole_sha256(may_read=False) == hashlib.sha256(content).hexdigest()


def test_another_server_reads_the_archive_for_its_digest_only_when_it_may(storage: Storage) -> None:
    content = os.urandom(1000)
    for start in (0, 500):
        with PartialUploads(storage).open(KEY) as part:
            part.begin("ds_1", 1000, None)
            part.append([content[start : start + 500]])
    with PartialUploads(storage).open(KEY) as part:
        assert part.whole_sha256(may_read=False) is None
        assert part.whole_sha256(may_read=True) == hashlib.sha256(content).hexdigest()


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
        assert part.whole_sha256(may_read=False) == hashlib.sha256(b"abcdef").hexdigest()
        assert part.begun().unverified_bytes == 6


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


def test_pieces_with_digests_are_chained_across_servers_and_nothing_is_read(
    storage: Storage,
) -> None:
    pieces = [os.urandom(SYNC_EVERY_BYTES), os.urandom(SYNC_EVERY_BYTES), b"end"]
    total, chain, start = sum(map(len, pieces)), bytes(32), 0
    read_before = psutil.Process().io_counters().read_chars
    for piece in pieces:
        # Each piece meets a server that has never heard of the upload.
        with PartialUploads(storage).open(KEY) as part:
            part.begin("ds_1", total, None)
            assert part.received == start
            part.append([piece[:70_000], piece[70_000:]], hashlib.sha256(piece).digest())
        start += len(piece)
        link = len(piece).to_bytes(8, "big") + hashlib.sha256(piece).digest()
        chain = hashlib.sha256(chain + link).digest()
    with PartialUploads(storage).open(KEY) as part:
        assert part.is_complete
        assert part.whole_sha256(may_read=False) is None
        assert part.begun().pieces_digest == chain.hex()
        assert part.begun().unverified_bytes == 0
        assert psutil.Process().io_counters().read_chars - read_before < 100_000
        assert part.archive.read_bytes() == b"".join(pieces)


def test_a_piece_with_a_digest_is_kept_whole_or_not_at_all(storage: Storage) -> None:
    def cut() -> Iterator[bytes]:
        yield b"de"
        raise EOFError("the sender went away")

    uploads = PartialUploads(storage)
    with uploads.open(KEY) as part:
        part.begin("ds_1", 6, None)
        part.append([b"abc"], hashlib.sha256(b"abc").digest())
        with pytest.raises(EOFError):
            part.append(cut(), hashlib.sha256(b"def").digest())
        assert part.archive.read_bytes() == b"abc"
        with pytest.raises(InvalidRequest) as caught:
            part.append([b"dEf"], hashlib.sha256(b"def").digest())
        assert caught.value.code == "content_digest_mismatch"
        assert caught.value.hint is not None
        assert "from byte 3" in caught.value.hint
        assert (part.received, part.archive.read_bytes()) == (3, b"abc")
    with uploads.open(KEY) as part:
        part.append([b"d", b"ef"], hashlib.sha256(b"def").digest())
        # What was dropped has left no trace in the running digest either.
        assert part.whole_sha256(may_read=False) == hashlib.sha256(b"abcdef").hexdigest()


def test_a_server_killed_within_a_piece_goes_on_behind_the_last_whole_one(storage: Storage) -> None:
    program = _WRITES_UNTIL_KILLED.replace(
        "part.append(chunks())",
        "part.append([b'z' * 10], hashlib.sha256(b'z' * 10).digest())\n"
        "    part.append(chunks(), bytes(32))",
    ).replace("import sys, time", "import hashlib, sys, time")
    with subprocess.Popen(
        [sys.executable, "-c", program, str(storage.root)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"under way\n"
        process.send_signal(signal.SIGKILL)
    with PartialUploads(storage).open(KEY) as part:
        assert part.archive.stat().st_size > SYNC_EVERY_BYTES, "the kill came within the piece"
        assert part.received == 10
        part.append([b"y"], hashlib.sha256(b"y").digest())
        assert part.archive.read_bytes() == b"z" * 10 + b"y"


def test_an_archive_that_lost_acknowledged_bytes_begins_again(storage: Storage) -> None:
    with PartialUploads(storage).open(KEY) as part:
        part.begin("ds_1", 6, None)
        part.append([b"abc"], hashlib.sha256(b"abc").digest())
        os.truncate(part.archive, 2)
    with PartialUploads(storage).open(KEY) as part:
        assert part.received == 0
        part.append([b"abcdef"], hashlib.sha256(b"abcdef").digest())
        assert part.archive.read_bytes() == b"abcdef"


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
