"""Which workers are alive, told by locked files under ``workers/`` in the storage directory.

A worker holds the lock of its own file for as long as it lives and touches the file with each
renewal of its leases.  The lock tells workers of the same host at once that one of them died; the
time of the touch tells everybody else, who may not see locks across hosts.
"""

import fcntl
import json
import os
import socket
import time
from pathlib import Path

from service.worker.file_lock import is_locked

_SUFFIX = ".json"


def _folder(storage_root: Path) -> Path:
    return storage_root / "workers"


class Presence:
    """One worker's own file, locked from construction until `release` or death.

    Side effects: creates the file.
    """

    def __init__(self, storage_root: Path, worker_id: str) -> None:
        folder = _folder(storage_root)
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / f"{worker_id}{_SUFFIX}"
        # Locked and filled before it gets its name, so that nobody sees it free or empty.
        temporary = folder / f".{worker_id}.tmp"
        self._descriptor = os.open(
            temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644
        )
        fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        content = {"host": socket.gethostname(), "pid": os.getpid()}
        os.write(self._descriptor, json.dumps(content).encode())
        temporary.rename(self._path)

    def renew(self) -> None:
        """Say that this worker is alive now."""
        os.utime(self._descriptor)

    def release(self) -> None:
        """Leave; the file stays until another worker has taken over what this one had."""
        os.close(self._descriptor)


def dead_workers(storage_root: Path) -> set[str]:
    """Return the workers of this host that are gone and whose files are still there."""
    host = socket.gethostname()
    dead = set()
    for path in _folder(storage_root).glob(f"wrk_*{_SUFFIX}"):
        try:
            same_host = json.loads(path.read_bytes())["host"] == host
        except FileNotFoundError:
            continue
        if same_host and not is_locked(path):
            dead.add(path.stem)
    return dead


def forget(storage_root: Path, worker_ids: set[str]) -> None:
    """Remove the files of workers that are gone, once their jobs were taken over."""
    for worker_id in worker_ids:
        (_folder(storage_root) / f"{worker_id}{_SUFFIX}").unlink(missing_ok=True)


def seen_within(storage_root: Path, limit_s: float) -> bool:
    """Return whether any worker said within the last ``limit_s`` seconds that it is alive."""
    newest = 0.0
    for path in _folder(storage_root).glob(f"wrk_*{_SUFFIX}"):
        try:
            newest = max(newest, path.stat().st_mtime)
        except FileNotFoundError:
            continue
    return time.time() - newest <= limit_s
