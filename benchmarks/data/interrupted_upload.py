"""An archive is uploaded while client and server are killed in turn, and the worker after them.

``python -m benchmarks.data interrupted-upload --bytes 2GiB`` packs frames of noise, starts the real
service, uploads with the real command through a relay that counts every byte, and sends SIGKILL in
the middle of a piece: to the client, to the whole service, and so on.  The import is killed once,
half-way.  It needs about three times the bytes on the disk of temporary files.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import psutil

from benchmarks.data.interrupted_upload_page import KILLS, PAGE, Outcome, page, render
from benchmarks.data.killed_service import POLL_S, START_S, KilledService, bytes_read
from benchmarks.data.relay import Relay
from benchmarks.norm.processor import processor_name
from service.client.archive_upload import PIECE_BYTES

FRAME_SHAPE = (2000, 2500)
_DATASET = "interrupted"
_PATIENCE_S = 1800.0
_MIB = 1024**2


def write_archive(path: Path, total_bytes: int) -> tuple[int, int]:
    """Pack frames of noise, uncompressed, until the archive has so many bytes.

    Returns:
        How many, and the bytes of each.
    """
    random = np.random.default_rng(0)
    frames, frame_bytes = 0, 0
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive, path.open("rb") as written:
        while os.fstat(written.fileno()).st_size < total_bytes:
            pixels = np.frombuffer(random.bytes(FRAME_SHAPE[0] * FRAME_SHAPE[1]), np.uint8)
            encoded = cv2.imencode(".bmp", pixels.reshape(FRAME_SHAPE))[1].tobytes()
            archive.writestr(f"images/part_{frames:05}.bmp", encoded)
            frames, frame_bytes = frames + 1, len(encoded)
    return frames, frame_bytes


class ClientReads:
    """Watches what a client reads from its first byte on the line on.

    Args:
        pid: The client.
        relay: Through which it sends.
    """

    def __init__(self, pid: int, relay: Relay) -> None:
        self._process = psutil.Process(pid)
        self._relay = relay
        self._sent_before = relay.sent_bytes
        self._before = self._last = 0
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def total(self) -> int:
        """Return the bytes, when the client has ended."""
        self._thread.join()
        return self._last - self._before

    def _watch(self) -> None:
        with suppress(psutil.Error):
            while self._process.status() != psutil.STATUS_ZOMBIE:
                self._last = bytes_read(self._process)
                if self._relay.sent_bytes == self._sent_before:
                    self._before = self._last
                time.sleep(POLL_S)


class Rehearsal:
    """One upload with its kills.

    Args:
        folder: Empty; holds archive, storage and log.
        total_bytes: Of the archive, at least.
    """

    def __init__(self, folder: Path, total_bytes: int) -> None:
        self._archive = folder / "frames.zip"
        frames, frame_bytes = write_archive(self._archive, total_bytes)
        size = self._archive.stat().st_size
        self.outcome = Outcome(size, frames, frame_bytes)
        self._service = KilledService(folder)
        # Half a piece behind an even share, so that a kill comes in the middle of a piece.
        places = [size * n // (KILLS + 1) + PIECE_BYTES // 2 for n in range(1, KILLS + 1)]
        actions = [self._kill_client if n % 2 == 0 else self._kill_service for n in range(KILLS)]
        self._sent_before = 0
        self._relay = Relay(self._service.port, list(zip(places, actions, strict=True)))

    def run(self) -> Outcome:
        """Upload, import, and tell what was seen."""
        try:
            self._upload()
            self._import()
        finally:
            self._relay.close()
            self._service.close()
        return self.outcome

    def _kill_client(self) -> None:
        self.outcome.kills.append("client")
        self._client.kill()

    def _kill_service(self) -> None:
        self.outcome.kills.append("server")
        self._note_server_reads()
        self._service.kill()

    def _note_server_reads(self) -> None:
        # The kernel counts reading from a socket as it counts reading from a file.
        arrived = self._relay.sent_bytes - self._sent_before
        self.outcome.server_reads.append(self._service.read_since_ready() - arrived)

    def _start_client(self) -> None:
        command = [sys.executable, "-m", "service.cli", "upload", str(self._archive)]
        self._client = subprocess.Popen(  # noqa: S603 - our own program.
            [*command, "--dataset", _DATASET, "--url", self._relay.url]
        )
        self._reads = ClientReads(self._client.pid, self._relay)

    def _upload(self) -> None:
        started = time.monotonic()
        self._start_client()
        for _ in self._polls():
            if self._service.process.poll() is not None:
                self._sent_before = self._relay.sent_bytes
                self._service.start()
            elif self._client.poll() is not None:
                self._restart_client()
            elif not self._relay.triggers_left and self._is_queued():
                break
            # While nothing is queued: what a worker reads to start.
            with suppress(psutil.Error):
                self._idle_worker_read_bytes = bytes_read(self._service.worker)
        self.outcome.line_bytes = self._relay.sent_bytes
        self._note_server_reads()
        self.outcome.upload_s = time.monotonic() - started

    def _import(self) -> None:
        started, client = time.monotonic(), self._service.client
        (dataset,) = client.datasets()
        is_watched = False
        for _ in self._polls():
            if self._client.poll() is not None:
                break
            items = client.dataset(dataset.id).counts["items"]
            at_kill = self.outcome.items_at_worker_kill
            if at_kill is None and items >= self.outcome.frames // 2:
                self._kill_worker(dataset.id)
            elif at_kill is not None and items > at_kill and not is_watched:
                # Until its first frame a worker grows by the code that it loads.
                self._service.watch_memory("worker", self._service.worker)
                is_watched = True
        self.outcome.import_s = time.monotonic() - started
        self.outcome.client_reads.append(self._reads.total())
        if self.outcome.items_at_worker_kill is not None:
            self.outcome.second_worker = self._service.import_read(self._import_id)
            read_bytes = bytes_read(self._service.worker) - self._idle_worker_read_bytes
            self.outcome.second_worker_read_bytes = read_bytes
        self.outcome.items = client.dataset(dataset.id).counts["items"]
        self.outcome.status = self._import_row(dataset.id)[0]
        self.outcome.rss_growth = dict(self._service.rss_growth)

    def _kill_worker(self, dataset_id: str) -> None:
        self._service.worker.kill()
        self._service.worker.wait(START_S)
        status, done = self._import_row(dataset_id)
        if status == "running":
            self.outcome.done_at_worker_kill = done
        items = self._service.client.dataset(dataset_id).counts["items"]
        self.outcome.items_at_worker_kill = items
        self._service.worker = self._service.child("worker")

    def _import_row(self, dataset_id: str) -> tuple[str, int]:
        found = self._service.client.archive_import(dataset_id, self._import_id)
        return found.status, found.done

    def _restart_client(self) -> None:
        if self._client.returncode >= 0:
            raise RuntimeError(f"the client gave up with {self._client.returncode}")
        self.outcome.client_reads.append(self._reads.total())
        self._start_client()

    def _is_queued(self) -> bool:
        spool = self._service.storage / "spool"
        if any(spool.glob("*.upload")):
            return False
        self._import_id = next(spool.glob("*.archive")).stem
        return True

    @staticmethod
    def _polls() -> Iterator[None]:
        deadline = time.monotonic() + _PATIENCE_S
        while time.monotonic() < deadline:
            yield
            time.sleep(POLL_S)
        raise TimeoutError(f"not done after {_PATIENCE_S:g} s")


def measure(total_bytes: int) -> Outcome:
    """Run the rehearsal in a temporary folder, which is removed."""
    with tempfile.TemporaryDirectory(prefix="hairline-upload-") as folder:
        return Rehearsal(Path(folder), total_bytes).run()


def parse_bytes(text: str) -> int:
    """Return the number that ``2GiB``, ``64MiB`` or ``1000000`` stands for."""
    found = re.fullmatch(r"(\d+)\s*(|KiB|MiB|GiB)", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 2GiB or 64MiB")
    factor: int = 1024 ** ("", "KiB", "MiB", "GiB").index(found[2])
    return int(found[1]) * factor


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's arguments."""
    parser.add_argument("--bytes", type=parse_bytes, default="2GiB", help="size of the archive")
    parser.add_argument("--page", type=Path, default=PAGE, help=f"where to write (default {PAGE})")


def run(arguments: argparse.Namespace) -> int:
    """Measure, print the table, write the page; return 1 if a promise was broken."""
    load = os.getloadavg()[0]
    outcome = measure(arguments.bytes)
    table = render(outcome)
    machine = f"{processor_name()}; {os.cpu_count()} cores; load average {load:.2f} before the run."
    size = f"{arguments.bytes // _MIB}MiB"
    arguments.page.parent.mkdir(parents=True, exist_ok=True)
    arguments.page.write_text(page(outcome, size, machine))
    print(table)
    print(f"wrote {arguments.page}")
    return 1 if outcome.violations() else 0
