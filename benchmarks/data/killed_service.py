"""`hairline serve` in a folder: killed, started again, and watched from outside."""

import re
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil

from service.client import HairlineClient

START_S = 180.0
POLL_S = 0.02

_IMPORT_READ = re.compile(
    r"(imp_\w+): read (\d+) files of (\d+) bytes from the archive, decoded (\d+) frames"
)


class ImportRead(NamedTuple):
    """What the worker that ended an import counted."""

    files: int
    byte_count: int
    decoded_frames: int


def bytes_read(process: psutil.Process) -> int:
    """Return what a process has read from files and sockets (``rchar`` of ``/proc/PID/io``)."""
    return int(process.io_counters().read_chars)


class KilledService:
    """`hairline serve` over one storage directory, killed and started again.

    Args:
        folder: For storage and log.
    """

    def __init__(self, folder: Path) -> None:
        self.storage = folder / "storage"
        self._log_path = folder / "service.log"
        self._log = self._log_path.open("ab")
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = int(probe.getsockname()[1])
        self.client = HairlineClient(f"http://127.0.0.1:{self.port}")
        self.rss_growth = {"api": 0, "worker": 0}
        self._stopped = threading.Event()
        self.start()

    def start(self) -> None:
        """Start it, wait until it is ready, and watch its memory from there on."""
        command = [sys.executable, "-m", "service.cli", "serve", "--storage", str(self.storage)]
        self.process = subprocess.Popen(  # noqa: S603 - our own program.
            [*command, "--port", str(self.port)], stdout=subprocess.DEVNULL, stderr=self._log
        )
        self.client.wait_until_ready(START_S)
        self.api, self.worker = self.child("api"), self.child("worker")
        self.watch_memory("api", self.api)
        self.watch_memory("worker", self.worker)
        self._read_before = bytes_read(self.api)

    def child(self, role: str) -> psutil.Process:
        """Return the living process of that role: ``api`` or ``worker``."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            for child in psutil.Process(self.process.pid).children():
                with suppress(psutil.Error):
                    if role in child.cmdline() and child.is_running():
                        return child
            time.sleep(POLL_S)
        raise TimeoutError(f"the service has no {role}")

    def watch_memory(self, role: str, process: psutil.Process) -> None:
        """Note how far a process's resident memory grows from now on."""
        threading.Thread(target=self._watch_memory, args=(role, process), daemon=True).start()

    def read_since_ready(self) -> int:
        """Return what the server has read, from files and sockets, since it was ready."""
        return bytes_read(self.api) - self._read_before

    def kill(self) -> None:
        """Send SIGKILL to all of its processes."""
        parent = psutil.Process(self.process.pid)
        for process in (*parent.children(recursive=True), parent):
            with suppress(psutil.Error):
                process.kill()

    def import_read(self, import_id: str) -> ImportRead:
        """Return what the worker that ended an import has logged that it read."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            for found in _IMPORT_READ.finditer(self._log_path.read_text()):
                if found[1] == import_id:
                    return ImportRead(int(found[2]), int(found[3]), int(found[4]))
            # The import's end is a row a moment before it is a line of the log.
            time.sleep(POLL_S)
        raise TimeoutError(f"{import_id} has logged nothing that it read")

    def close(self) -> None:
        """Kill it and wait for its end."""
        self._stopped.set()
        with suppress(psutil.Error):
            self.kill()
        self.process.wait()
        self.client.close()
        self._log.close()

    def _watch_memory(self, role: str, process: psutil.Process) -> None:
        with suppress(psutil.Error):
            first = process.memory_info().rss
            while not self._stopped.wait(POLL_S):
                growth = process.memory_info().rss - first
                self.rss_growth[role] = max(self.rss_growth[role], growth)
