"""The decoded cache: whole entries, a bound, damage seen, several processes, a killed writer."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data import FrameCache, Item
from data.frame_cache import CacheSpec, choose_max_bytes

Warnings = list[tuple[str, str]]
ENTRY_BYTES = 48 * 64 + 128


@pytest.fixture
def told() -> Warnings:
    return []


def open_cache(folder: Path, told: Warnings, entries: int = 10) -> FrameCache:
    return FrameCache(folder, entries * ENTRY_BYTES, lambda code, text: told.append((code, text)))


def picture(value: int = 7) -> Any:
    return np.full((48, 64), value, np.uint8)


def test_what_was_added_is_read_back_mapped_and_can_not_be_changed(
    tmp_path: Path, told: Warnings, make_item: Callable[..., Item]
) -> None:
    cache = open_cache(tmp_path, told)
    colour = dataclasses.replace(make_item("b"), channels=3, bit_depth=16)
    deep = np.arange(48 * 64 * 3, dtype=np.uint16).reshape(48, 64, 3)
    cache = FrameCache(tmp_path, 10**6, lambda code, text: told.append((code, text)))
    assert cache.read(make_item("a")) is None
    cache.add(make_item("a"), picture())
    cache.add(colour, deep)
    found = cache.read(make_item("a"))
    assert isinstance(found, np.memmap)
    np.testing.assert_array_equal(found, picture())
    np.testing.assert_array_equal(np.asarray(cache.read(colour)), deep)
    with pytest.raises(ValueError, match="read-only"):
        found[0, 0] = 1
    use = cache.use()
    assert use.frames == 2
    assert use.bytes == sum(path.stat().st_size for path in tmp_path.glob("*.npy"))
    assert str(use) == "decoded cache: 2 frames, 0.0 GB of 0.0 GB"
    assert told == []


@pytest.mark.parametrize("damage", ["cut", "empty", "noise", "other size", "other type"])
def test_a_damaged_entry_is_dropped_with_a_warning_that_names_the_frame(
    tmp_path: Path, told: Warnings, make_item: Callable[..., Item], damage: str
) -> None:
    cache = open_cache(tmp_path, told)
    item = make_item("part_7.png")
    cache.add(item, picture())
    (entry,) = tmp_path.glob("*.npy")
    content = entry.read_bytes()
    if damage.startswith("other"):
        shape, dtype = ((64, 48), np.uint8) if damage == "other size" else ((48, 64), np.uint16)
        with entry.open("wb") as file:
            np.save(file, np.zeros(shape, dtype))
    else:
        entry.write_bytes({"cut": content[:-1], "empty": b"", "noise": os.urandom(900)}[damage])
    assert cache.read(item) is None
    assert [code for code, _ in told] == ["cache_entry_damaged"]
    assert "part_7.png" in told[0][1]
    cache.add(item, picture())
    np.testing.assert_array_equal(np.asarray(cache.read(item)), picture())


def test_a_full_cache_keeps_its_own_frames_and_takes_no_more(
    tmp_path: Path, told: Warnings, make_item: Callable[..., Item]
) -> None:
    cache = open_cache(tmp_path, told, entries=2)
    for name in "abcd":
        cache.add(make_item(name), picture())
    assert cache.use().frames == 2
    assert [cache.read(make_item(name)) is not None for name in "abcd"] == [1, 1, 0, 0]


def test_frames_that_no_run_has_read_for_an_hour_make_room_oldest_first(
    tmp_path: Path, told: Warnings, make_item: Callable[..., Item]
) -> None:
    former = open_cache(tmp_path, told, entries=3)
    for hours, name in ((3, "old"), (2, "older than an hour"), (0, "young")):
        former.add(make_item(name), picture())
        entry = tmp_path / f"{make_item(name).sha256}-1.npy"
        used_s = time.time() - hours * 3600 - 1
        os.utime(entry, (used_s, used_s))
    cache = open_cache(tmp_path, told, entries=3)
    cache.add(make_item("new"), picture())
    assert cache.read(make_item("old")) is None
    assert cache.read(make_item("older than an hour")) is not None
    # It was read just now and counts as used.
    cache.add(make_item("another"), picture())
    assert cache.read(make_item("another")) is None
    assert cache.use().frames == 3


WRITER = """
import sys, time
from pathlib import Path
import numpy as np
from data import FrameCache, GoodFrame, Item
import hashlib

folder, first, count, dwell = Path(sys.argv[1]), *map(int, sys.argv[2:])
cache = FrameCache(folder, 12 * (1000 * 1000 + 128), print)
if dwell:
    import numpy.lib.format as form
    write = form.write_array
    def slow(file, *arguments, **options):
        file.write(b"half")
        file.flush()
        print("writing", flush=True)
        time.sleep(dwell)
    np.lib.format.write_array = slow
for number in range(first, first + count):
    digest = hashlib.sha256(str(number).encode()).hexdigest()
    item = Item(str(number), "k", "f", digest, 1000, 1000, 1, 8, None, None, GoodFrame())
    if cache.read(item) is None:
        cache.add(item, np.full((1000, 1000), number, np.uint8))
"""


def writer(folder: Path, first: int, count: int, dwell_s: int = 0) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder), str(first), str(count), str(dwell_s)],
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_killed_writer_leaves_nothing_half(tmp_path: Path, told: Warnings) -> None:
    process = writer(tmp_path, 0, 1, dwell_s=60)
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    # What is being written is left alone while its writer lives.
    open_cache(tmp_path, told)
    assert len(list(tmp_path.glob("*.part"))) == 1
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    cache = open_cache(tmp_path, told)
    assert cache.use().frames == 0
    assert list(tmp_path.glob("*.part")) == []
    assert told == []


def test_several_processes_share_one_bound(tmp_path: Path) -> None:
    writers = [writer(tmp_path, first, 10) for first in (0, 5, 10)]
    for process in writers:
        output, _ = process.communicate(timeout=120)
        assert (process.returncode, output) == (0, "")
    entries = list(tmp_path.glob("*.npy"))
    assert len(entries) == 12
    for entry in entries:
        assert len(np.unique(np.load(entry))) == 1
    assert list(tmp_path.glob("*.part")) == []


def test_a_cache_that_can_not_be_written_says_so_once_and_stays_out_of_the_way(
    tmp_path: Path, told: Warnings, make_item: Callable[..., Item]
) -> None:
    (tmp_path / "file").write_bytes(b"")
    cache = open_cache(tmp_path / "file" / "cache", told)
    cache.add(make_item("a"), picture())
    assert cache.read(make_item("a")) is None
    assert [code for code, _ in told] == ["cache_unavailable"]
    assert cache.use().frames == 0


def test_the_bound_is_the_one_asked_for_else_a_part_of_the_free_disk(tmp_path: Path) -> None:
    assert choose_max_bytes(CacheSpec(max_bytes=5), tmp_path) == 5
    statistics = os.statvfs(tmp_path)
    disk_bytes = statistics.f_frsize * statistics.f_blocks
    assert 0 < choose_max_bytes(CacheSpec(), tmp_path / "not" / "there") <= disk_bytes // 10
