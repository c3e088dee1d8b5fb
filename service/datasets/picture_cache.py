"""Drawn pictures kept on disk: bounded, least recently used first to go, never half a picture."""

import contextlib
import logging
import os
import secrets
import threading
from pathlib import Path

logger = logging.getLogger(__name__)

# A tenth is removed at once: looking at every file for each new picture would outlast drawing it.
_KEPT_SHARE = 0.9


class PictureCache:
    """Files named by a digest of all that determines them, so that none ever goes stale.

    Safe to call from several threads.  A process killed while it writes leaves a file in the spool,
    which `Storage.clear_spool` removes.

    Args:
        folder: Of the kept files; made if it is missing.
        spool_dir: Where a file is written first, on the same file system.
        max_bytes: Most bytes of all kept files; 0 keeps none.
    """

    def __init__(self, folder: Path, spool_dir: Path, max_bytes: int) -> None:
        self._folder = folder
        self._spool_dir = spool_dir
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        # Unknown until the first picture is kept: starting must not wait for a slow disk.
        self._total_bytes: int | None = None

    def get(self, digest: str) -> bytes | None:
        """Return a kept picture, None if it is not there.

        Side effects: marks it as used now.
        """
        path = self._path(digest)
        try:
            content = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        return content

    def put(self, digest: str, content: bytes) -> None:
        """Keep a picture, and remove others where there is no room for it.

        A disk that is full or fails is logged: the picture itself can be answered all the same.
        """
        if len(content) > self._max_bytes:
            return
        try:
            self._write(self._path(digest), content)
            self._make_room()
        except OSError as error:
            logger.warning("a preview was not kept: %s", error)

    def _path(self, digest: str) -> Path:
        return self._folder / digest[:2] / digest

    def _write(self, path: Path, content: bytes) -> None:
        spooled = self._spool_dir / f"{secrets.token_hex(16)}.part"
        try:
            with spooled.open("xb") as file:
                file.write(content)
                file.flush()
                # Without this a power cut could leave the name with nothing behind it.
                os.fsync(file.fileno())
            path.parent.mkdir(parents=True, exist_ok=True)
            with self._lock:
                is_new = not path.exists()
                spooled.replace(path)
                if self._total_bytes is not None and is_new:
                    self._total_bytes += len(content)
        finally:
            spooled.unlink(missing_ok=True)

    def _make_room(self) -> None:
        with self._lock:
            if self._total_bytes is not None and self._total_bytes <= self._max_bytes:
                return
            files = self._files()
            self._total_bytes = sum(size for _, size, _ in files)
            if self._total_bytes <= self._max_bytes:
                return
            for _used_at, size, path in sorted(files):
                path.unlink(missing_ok=True)
                self._total_bytes -= size
                if self._total_bytes <= _KEPT_SHARE * self._max_bytes:
                    return

    def _files(self) -> list[tuple[int, int, Path]]:
        """Return when each kept file was used last (ns), its bytes and its path."""
        found = []
        for path in self._folder.glob("*/*"):
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                found.append((status.st_mtime_ns, status.st_size, path))
        return found
