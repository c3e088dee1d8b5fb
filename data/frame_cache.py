"""Decoded frames on disk, memory-mapped: decoding a frame once instead of once an epoch.

An entry is a ``.npy`` file named by the SHA-256 of the picture it was decoded from.  It appears
under its name whole or not at all, any number of processes may share the directory, and what is
stored never exceeds the bound.  A cache is never needed: whatever it can't do, frames are decoded.
"""

import contextlib
import fcntl
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from data.bayer import BayerPattern
from data.images import Pixels
from data.items import Item

logger = logging.getLogger(__name__)

Warn = Callable[[str, str], None]

# Part of an entry's name, so that a release that decodes otherwise finds no entry of the former.
DECODING = 1
# An entry that no run has read for this long is nobody's; a run touches each of its own once an
# epoch.
IDLE_S = 3600.0
# Last use is written no oftener than this.
_TOUCH_S = 60.0
# Where the size is left to us, the cache takes this share of the free disk, and no more than that.
_SHARE_OF_FREE = 0.1
_MOST_BYTES = 32 * 1024**3

_SUFFIX = ".npy"
_PART = ".part"


class CacheSpec(BaseModel):
    """How much disk decoded frames may take.

    Attributes:
        max_bytes: 0 switches the cache off.  None takes a tenth of the free disk, at most 32 GiB.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_bytes: int | None = Field(default=None, ge=0)


@dataclass(frozen=True)
class CacheUse:
    """What a cache holds.

    Attributes:
        frames: Entries.
        bytes: Their size.
        max_bytes: The bound.
    """

    frames: int
    bytes: int
    max_bytes: int

    def __str__(self) -> str:
        held, most = self.bytes / 1e9, self.max_bytes / 1e9
        return f"decoded cache: {self.frames} frames, {held:.1f} GB of {most:.1f} GB"


def choose_max_bytes(spec: CacheSpec, directory: Path) -> int:
    """Return the bound of a cache; what it holds already counts as free.

    Args:
        spec: What was asked for.
        directory: The cache's; it need not exist.
    """
    if spec.max_bytes is not None:
        return spec.max_bytes
    held = sum(size for _, size, _ in _stats(directory, _SUFFIX)) if directory.is_dir() else 0
    there = next(path for path in (directory, *directory.parents) if path.exists())
    return min(_MOST_BYTES, int(_SHARE_OF_FREE * (shutil.disk_usage(there).free + held)))


class FrameCache:
    """Decoded pictures in a directory, least recently used by other runs evicted first.

    Frames are read in a new order each epoch.  When a set does not fit, evicting its own frames
    would lose each just before it is read again; so what this cache has used stays, the rest is
    decoded every time, and only entries that no run has read for an hour make room.

    Args:
        directory: Made if missing; nothing else may lie in it.
        max_bytes: Bound on the entries' sizes together.
        warn: Told (code, detail) of what went wrong; each code of the whole cache is told once,
            each damaged entry by itself.

    Side effects: writes into the directory; removes there what killed processes left half.
    """

    def __init__(self, directory: Path, max_bytes: int, warn: Warn) -> None:
        self._directory = directory
        self._max_bytes = max_bytes
        self._warn = warn
        self._lock = threading.Lock()
        self._used: set[str] = set()
        self._is_open = True
        try:
            directory.mkdir(parents=True, exist_ok=True)
            with self._exclusive():
                self._sweep()
        except OSError as error:
            self._close(error)

    def __reduce__(self) -> tuple[Any, ...]:
        # A process of its own opens the directory anew; locks do not travel.
        return (FrameCache, (self._directory, self._max_bytes, self._warn))

    def read(self, item: Item, bayer: BayerPattern | None = None) -> Pixels | None:
        """Return an item's decoded picture, read-only and mapped, or None if it is not there.

        The entry's type and size are compared with the item's; a damaged one is removed with a
        warning.  Flipped bits among the pixels are not looked for: the file system's checksums
        do that, and reading everything would cost what the mapping saves.

        Args:
            item: Whose picture is wanted.
            bayer: The pattern that it is to have been demosaiced with.

        Returns:
            (H, W) or (H, W, 3), uint8 or uint16.
        """
        if not self._is_open:
            return None
        path = self._path(item, bayer)
        try:
            pixels: Pixels = _open_entry(path, item)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            self._warn(
                "cache_entry_damaged",
                f"{item.name}: the decoded copy was damaged and is made again: {error}",
            )
            path.unlink(missing_ok=True)
            return None
        self._touch(path)
        return pixels

    def add(self, item: Item, pixels: Pixels, bayer: BayerPattern | None = None) -> None:
        """Store an item's decoded picture if there is room.

        Args:
            item: Whose picture it is.
            pixels: (H, W) or (H, W, 3), uint8 or uint16.
            bayer: The pattern that they were demosaiced with.
        """
        if not self._is_open or pixels.nbytes > self._max_bytes:
            return
        try:
            self._store(self._path(item, bayer), pixels)
        except OSError as error:
            self._close(error)

    def use(self) -> CacheUse:
        """Return what the directory holds, whoever wrote it."""
        sizes = [size for _, size, _ in self._entries()] if self._is_open else []
        return CacheUse(len(sizes), sum(sizes), self._max_bytes)

    def _path(self, item: Item, bayer: BayerPattern | None) -> Path:
        # A mosaic has other pixels under each pattern.
        mosaic = "" if bayer is None else f"-{bayer}"
        return self._directory / f"{item.sha256}{mosaic}-{DECODING}{_SUFFIX}"

    def _store(self, path: Path, pixels: Pixels) -> None:
        byte_count = pixels.nbytes + _HEADER_BYTES
        # The thread lock keeps two workers from holding two descriptors of the lock file at once.
        with self._lock, self._exclusive():
            if path.exists() or not self._make_room(byte_count):
                return
            descriptor, name = tempfile.mkstemp(dir=self._directory, suffix=_PART)
            part = Path(name)
            try:
                # Held while it is written: a free lock means that the writer is dead.
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                # Its room is taken before others count, and a full disk is met at once.
                os.posix_fallocate(descriptor, 0, byte_count)
            except OSError:
                os.close(descriptor)
                part.unlink()
                raise
        try:
            with os.fdopen(descriptor, "wb") as file:
                np.lib.format.write_array(file, np.ascontiguousarray(pixels), allow_pickle=False)
                file.truncate()
                os.fsync(descriptor)
                # Renamed while nobody counts: a count lists entries and then what is being
                # written, and would find a file that moves in between in neither.
                with self._lock, self._exclusive():
                    part.rename(path)
        finally:
            part.unlink(missing_ok=True)
        self._used.add(path.name)

    def _make_room(self, byte_count: int) -> bool:
        """Evict idle entries, the least recently used first, until ``byte_count`` more fit."""
        entries = self._entries()
        missing = sum(size for _, size, _ in entries) + self._being_written()
        missing += byte_count - self._max_bytes
        now_s = time.time()
        evictable = sorted(
            (used_s, size, path)
            for path, size, used_s in entries
            if path.name not in self._used and now_s - used_s > IDLE_S
        )
        if sum(size for _, size, _ in evictable) < missing:
            return False
        for _, size, path in evictable:
            if missing <= 0:
                break
            path.unlink(missing_ok=True)
            missing -= size
        return True

    def _entries(self) -> list[tuple[Path, int, float]]:
        """Return path, size and time of last use of every entry."""
        return _stats(self._directory, _SUFFIX)

    def _being_written(self) -> int:
        return sum(size for _, size, _ in _stats(self._directory, _PART))

    def _touch(self, path: Path) -> None:
        self._used.add(path.name)
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _TOUCH_S:
                os.utime(path)

    def _sweep(self) -> None:
        """Remove files that were being written by processes that are no more."""
        for part in self._directory.glob(f"*{_PART}"):
            with contextlib.suppress(OSError), part.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                part.unlink()

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Keep other processes from counting, making room and sweeping at the same time."""
        descriptor = os.open(self._directory / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _close(self, error: OSError) -> None:
        with self._lock:
            was_open, self._is_open = self._is_open, False
        if was_open:
            self._warn(
                "cache_unavailable",
                f"the decoded cache in {self._directory} can't be written ({error.strerror}); "
                "frames are decoded each time",
            )


# A .npy header of version 1.0 is padded to 128 bytes for the shapes of pictures.
_HEADER_BYTES = 128


def _stats(directory: Path, suffix: str) -> list[tuple[Path, int, float]]:
    found = []
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.name.endswith(suffix):
                # Another process may evict it between the listing and the question.
                with contextlib.suppress(FileNotFoundError):
                    stat = entry.stat()
                    found.append((Path(entry.path), stat.st_size, stat.st_mtime))
    return found


def _open_entry(path: Path, item: Item) -> Any:
    """Map an entry whose type, shape and length are those of the item's picture.

    Raises:
        ValueError: It is another picture's, or cut off.
    """
    pixels = np.lib.format.open_memmap(path, mode="r")
    shape = (item.height, item.width) + ((3,) if item.channels == 3 else ())
    dtype = np.dtype(np.uint16 if item.bit_depth == 16 else np.uint8)
    if pixels.shape != shape or pixels.dtype != dtype or not pixels.flags.c_contiguous:
        raise ValueError(f"it holds {pixels.dtype} {pixels.shape}, not {dtype} {shape}")
    return pixels
