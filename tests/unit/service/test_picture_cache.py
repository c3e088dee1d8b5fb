import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from service.datasets.picture_cache import PictureCache
from service.storage import Storage

WRITER = """
import hashlib, sys
from pathlib import Path
from service.datasets.picture_cache import PictureCache
folder, spool = map(Path, sys.argv[1:])
cache = PictureCache(folder, spool, 10**9)
for number in range(10**6):
    content = str(number).encode() * 100_000
    cache.put(hashlib.sha256(content).hexdigest(), content)
    print(number, flush=True)
"""


def digest(number: int) -> str:
    return f"{number:02x}" * 32


def cache_of(storage: Storage, max_bytes: int) -> PictureCache:
    return PictureCache(storage.root / "previews", storage.spool_dir, max_bytes)


def kept(storage: Storage) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (storage.root / "previews").glob("*/*")}


def use_at(storage: Storage, name: str, moment_s: int) -> None:
    os.utime(storage.root / "previews" / name[:2] / name, (moment_s, moment_s))


def test_a_kept_picture_comes_back_after_a_restart(storage: Storage) -> None:
    cache_of(storage, 100).put(digest(1), b"picture")
    assert cache_of(storage, 100).get(digest(1)) == b"picture"
    assert cache_of(storage, 100).get(digest(2)) is None
    assert not list(storage.spool_dir.iterdir())


def test_the_least_recently_used_pictures_go_first(storage: Storage) -> None:
    cache = cache_of(storage, 100)
    for number in range(10):
        cache.put(digest(number), b"x" * 10)
        use_at(storage, digest(number), 1000 + number)
    assert len(kept(storage)) == 10
    cache.get(digest(0))
    cache.put(digest(10), b"x" * 10)
    assert set(kept(storage)) == {digest(number) for number in (0, *range(3, 11))}


def test_what_was_kept_before_a_restart_counts(storage: Storage) -> None:
    cache_of(storage, 100).put(digest(1), b"x" * 60)
    use_at(storage, digest(1), 1000)
    cache_of(storage, 100).put(digest(2), b"y" * 60)
    assert kept(storage) == {digest(2): b"y" * 60}


@pytest.mark.parametrize("max_bytes", [0, 5])
def test_a_picture_larger_than_the_bound_is_not_kept(storage: Storage, max_bytes: int) -> None:
    cache = cache_of(storage, max_bytes)
    cache.put(digest(1), b"picture")
    assert cache.get(digest(1)) is None
    assert kept(storage) == {}


def test_the_same_picture_kept_twice_counts_once(storage: Storage) -> None:
    cache = cache_of(storage, 100)
    for _ in range(5):
        cache.put(digest(1), b"x" * 40)
    cache.put(digest(2), b"x" * 40)
    assert set(kept(storage)) == {digest(1), digest(2)}


def test_a_disk_that_fails_costs_the_picture_its_place_and_nothing_else(
    storage: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    (storage.root / "previews").write_bytes(b"a file where the folder should be")
    cache = cache_of(storage, 100)
    cache.put(digest(1), b"picture")
    assert "a preview was not kept" in caplog.text
    assert cache.get(digest(1)) is None
    assert not list(storage.spool_dir.iterdir())


def test_a_killed_process_leaves_no_half_picture(storage: Storage, tmp_path: Path) -> None:
    program = [sys.executable, "-c", WRITER, str(storage.root / "previews"), str(storage.spool_dir)]
    for written in (3, 7, 11):
        with subprocess.Popen(program, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            for _ in range(written):
                process.stdout.readline()
            process.send_signal(signal.SIGKILL)
        found = kept(storage)
        assert len(found) >= written
        assert all(hashlib.sha256(content).hexdigest() == name for name, content in found.items())
