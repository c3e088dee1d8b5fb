"""An archive is uploaded while client and server are killed in turn, and the worker after them.

``python -m benchmarks.data interrupted-upload --bytes 2GiB`` packs frames of noise, starts the real
service, uploads with the real command through a relay that counts every byte, and sends SIGKILL in
the middle of a piece: to the client, to the whole service, and so on.  The import is killed once,
half-way.  It needs about three times the bytes on the disk of temporary files.
"""

import argparse
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import psutil

from benchmarks.data.relay import Relay
from benchmarks.norm.processor import processor_name
from service.archive_upload import PIECE_BYTES
from service.client import HairlineClient

PAGE = Path("docs/benchmarks/data-interrupted-upload.md")
KILLS = 5
FRAME_SHAPE = (2000, 2500)
# Beyond the size of a piece, and of what the interpreter keeps of freed memory.
RSS_GROWTH_BOUND = 64 * 1024**2
_DATASET = "interrupted"
_START_S = 180.0
_PATIENCE_S = 1800.0
_POLL_S = 0.02
# Request and answer headers of a piece, a question, or an attempt while the server is away.
_REQUEST_BYTES = 1024
_ATTEMPTS_A_KILL = 100
_MIB = 1024**2


@dataclass
class Outcome:
    """What was seen.

    Attributes:
        archive_bytes: Its size.
        frames: How many it holds.
        kills: Who was killed, in order.
        line_bytes: What clients sent until the import was queued, headers included.
        read_back_bytes: What the last server read beyond what it received, most of it to hash.
        upload_s: From the first byte to the import, starts of processes included.
        import_s: From there to the end of the import.
        rss_growth: Largest growth of resident memory, in bytes, by role.
        done_at_worker_kill: Files that the import's progress counted when the worker was killed.
        items_at_worker_kill: Frames that were rows then; None if the worker was too quick.
        items: Frames at the end.
        status: Of the import.
    """

    archive_bytes: int
    frames: int
    kills: list[str] = field(default_factory=list)
    line_bytes: int = 0
    read_back_bytes: int = 0
    upload_s: float = 0.0
    import_s: float = 0.0
    rss_growth: dict[str, int] = field(default_factory=dict)
    done_at_worker_kill: int | None = None
    items_at_worker_kill: int | None = None
    items: int = 0
    status: str = ""

    @property
    def sent_again_bound(self) -> int:
        """Bytes that may go over the line beside the archive: a piece a kill, and headers."""
        requests = self.archive_bytes // PIECE_BYTES + 1 + _ATTEMPTS_A_KILL * (KILLS + 1)
        return KILLS * PIECE_BYTES + requests * _REQUEST_BYTES

    def violations(self) -> list[str]:
        """Return what was promised and not kept."""
        promises = {
            "every kill took place": len(self.kills) == KILLS,
            "the import succeeded": self.status == "succeeded",
            "every frame is there once": self.items == self.frames,
            "no more than a piece a kill was sent again": self.line_bytes - self.archive_bytes
            <= self.sent_again_bound,
            "the server's memory is flat": self.rss_growth.get("api", 0) < RSS_GROWTH_BOUND,
        }
        return [promise for promise, kept in promises.items() if not kept]


def write_archive(path: Path, total_bytes: int) -> int:
    """Pack frames of noise, uncompressed, until the archive has so many bytes; return how many."""
    random = np.random.default_rng(0)
    frames = 0
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive, path.open("rb") as written:
        while os.fstat(written.fileno()).st_size < total_bytes:
            pixels = np.frombuffer(random.bytes(FRAME_SHAPE[0] * FRAME_SHAPE[1]), np.uint8)
            encoded = cv2.imencode(".bmp", pixels.reshape(FRAME_SHAPE))[1]
            archive.writestr(f"images/part_{frames:05}.bmp", encoded.tobytes())
            frames += 1
    return frames


class Service:
    """`hairline serve` over one storage directory, killed and started again.

    Args:
        folder: For storage and log.
    """

    def __init__(self, folder: Path) -> None:
        self.storage = folder / "storage"
        self._log = (folder / "service.log").open("ab")
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
        self.client.wait_until_ready(_START_S)
        self._read_before = 0
        self._read_before = self.read_bytes()
        for role in self.rss_growth:
            threading.Thread(
                target=self._watch_memory, args=(role, self.child(role)), daemon=True
            ).start()

    def child(self, role: str) -> psutil.Process:
        """Return the living process of that role: ``api`` or ``worker``."""
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline:
            for child in psutil.Process(self.process.pid).children():
                with suppress(psutil.Error):
                    if role in child.cmdline():
                        return child
            time.sleep(_POLL_S)
        raise TimeoutError(f"the service has no {role}")

    def read_bytes(self) -> int:
        """Return what the server has read, from files and sockets, since it was ready."""
        return int(self.child("api").io_counters().read_chars) - self._read_before

    def kill(self) -> None:
        """Send SIGKILL to all of its processes."""
        parent = psutil.Process(self.process.pid)
        for process in (*parent.children(recursive=True), parent):
            with suppress(psutil.Error):
                process.kill()

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
            while not self._stopped.wait(_POLL_S):
                growth = process.memory_info().rss - first
                self.rss_growth[role] = max(self.rss_growth[role], growth)


class Rehearsal:
    """One upload with its kills.

    Args:
        folder: Empty; holds archive, storage and log.
        total_bytes: Of the archive, at least.
    """

    def __init__(self, folder: Path, total_bytes: int) -> None:
        self._archive = folder / "frames.zip"
        frames = write_archive(self._archive, total_bytes)
        size = self._archive.stat().st_size
        self.outcome = Outcome(size, frames)
        self._service = Service(folder)
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
        self._service.kill()

    def _start_client(self) -> None:
        command = [sys.executable, "-m", "service.cli", "upload", str(self._archive)]
        self._client = subprocess.Popen(  # noqa: S603 - our own program.
            [*command, "--dataset", _DATASET, "--url", self._relay.url]
        )

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
        self.outcome.line_bytes = self._relay.sent_bytes
        # The kernel counts reading from a socket as it counts reading from a file.
        arrived = self._relay.sent_bytes - self._sent_before
        self.outcome.read_back_bytes = self._service.read_bytes() - arrived
        self.outcome.upload_s = time.monotonic() - started

    def _import(self) -> None:
        started, client = time.monotonic(), self._service.client
        (dataset,) = client.datasets()
        for _ in self._polls():
            if self._client.poll() is not None:
                break
            is_open = self.outcome.items_at_worker_kill is None
            if is_open and client.dataset(dataset.id).counts["items"] >= self.outcome.frames // 2:
                self._kill_worker(dataset.id)
        self.outcome.import_s = time.monotonic() - started
        self.outcome.items = client.dataset(dataset.id).counts["items"]
        self.outcome.status = self._import_row(dataset.id)[0]
        self.outcome.rss_growth = dict(self._service.rss_growth)

    def _kill_worker(self, dataset_id: str) -> None:
        worker = self._service.child("worker")
        worker.kill()
        worker.wait(_START_S)
        status, done = self._import_row(dataset_id)
        if status == "running":
            self.outcome.done_at_worker_kill = done
        items = self._service.client.dataset(dataset_id).counts["items"]
        self.outcome.items_at_worker_kill = items

    def _import_row(self, dataset_id: str) -> tuple[str, int]:
        found = self._service.client.archive_import(dataset_id, self._import_id)
        return found.status, found.done

    def _restart_client(self) -> None:
        if self._client.returncode >= 0:
            raise RuntimeError(f"the client gave up with {self._client.returncode}")
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
            time.sleep(_POLL_S)
        raise TimeoutError(f"not done after {_PATIENCE_S:g} s")


def measure(total_bytes: int) -> Outcome:
    """Run the rehearsal in a temporary folder, which is removed."""
    with tempfile.TemporaryDirectory(prefix="hairline-upload-") as folder:
        return Rehearsal(Path(folder), total_bytes).run()


def render(outcome: Outcome) -> str:
    """Return the table."""
    again = outcome.line_bytes - outcome.archive_bytes
    pieces = f"{KILLS} pieces of {PIECE_BYTES // _MIB} MiB, and headers"
    bound = f"{outcome.sent_again_bound:,} ({pieces})"
    rows = [
        ("archive", f"{outcome.archive_bytes:,} bytes, {outcome.frames} frames"),
        ("killed (SIGKILL), in this order", ", ".join(outcome.kills)),
        ("sent by all clients together, headers included", f"{outcome.line_bytes:,} bytes"),
        ("of that, beside the archive itself", f"{again:,} bytes; bound {bound}"),
        (
            "read back from disk by the last server (read less received)",
            f"{outcome.read_back_bytes:,} bytes",
        ),
        (
            "largest growth of a server's resident memory",
            f"{outcome.rss_growth['api'] / _MIB:.1f} MiB; bound {RSS_GROWTH_BOUND // _MIB} MiB",
        ),
        (
            "largest growth of a worker's resident memory",
            f"{outcome.rss_growth['worker'] / _MIB:.1f} MiB",
        ),
        ("import's worker killed", _worker_kill(outcome)),
        ("frames at the end", f"{outcome.items}; import {outcome.status}"),
        ("upload, starts of processes included", f"{outcome.upload_s:.0f} s"),
        ("import, start of the second worker included", f"{outcome.import_s:.0f} s"),
        ("promises broken", "; ".join(outcome.violations()) or "none"),
    ]
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def _worker_kill(outcome: Outcome) -> str:
    done, items = outcome.done_at_worker_kill, outcome.items_at_worker_kill
    if done is None or items is None:
        return "no: the import had ended"
    return (
        f"with {items} frames taken in and {done} recorded as done: "
        f"{items - done} were read again and found to be known"
    )


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
    page = _PAGE_TEXT.format(size=size, machine=machine, table=table)
    arguments.page.parent.mkdir(parents=True, exist_ok=True)
    arguments.page.write_text(page)
    print(table)
    print(f"wrote {arguments.page}")
    return 1 if outcome.violations() else 0


_PAGE_TEXT = """# An upload that is killed again and again

```sh
python -m benchmarks.data interrupted-upload --bytes {size}
```

`hairline upload` sends an archive of noise (8-bit BMP frames of 2500x2000) to `hairline serve`
through a relay that counts what clients send. SIGKILL comes in the middle of a piece, to the client
and to all of the service's processes in turn; killed clients and services are started again. Then
the import's worker is killed. Resident memory is sampled from the moment a process is ready. Times
are those of one machine that does both ends, and of its disk.

A server hashes what arrives and carries the hash from request to request. One that was restarted
has lost it and reads the archive back once, when the last byte is there, however many restarts
there were.

{machine}

{table}
"""
