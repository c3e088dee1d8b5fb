"""``events.jsonl``: what a run tells the world, in order, one JSON object a line."""

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HEARTBEAT_S = 5.0


class EventLog:
    """Appends events; safe for several threads of one process.

    Opening it removes what a killed predecessor left unfinished at the end of the file and goes on
    counting from its last whole line.

    Args:
        path: The file; it is created if missing.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._sequence = _repair(path)
        self._file = path.open("a", encoding="utf-8")
        self._last_written_s = time.monotonic()

    def write(self, kind: str, **fields: Any) -> None:
        """Append one event and hand it to the operating system."""
        with self._lock:
            self._sequence += 1
            event = {
                "seq": self._sequence,
                "time": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
                "kind": kind,
                **fields,
            }
            self._file.write(json.dumps(event, separators=(",", ":"), allow_nan=False) + "\n")
            self._file.flush()
            self._last_written_s = time.monotonic()

    def warning(self, code: str, detail: str) -> None:
        """Append a warning: something was assumed, converted or left out."""
        self.write("warning", code=code, detail=detail)

    @contextmanager
    def heartbeats(self) -> Iterator[None]:
        """Write a heartbeat whenever nothing else was written for a while."""
        stop = threading.Event()

        def beat() -> None:
            while not stop.wait(HEARTBEAT_S / 5):
                if time.monotonic() - self._last_written_s >= HEARTBEAT_S:
                    self.write("heartbeat")

        thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def close(self) -> None:
        """Flush to disk and close."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()


class SilentEventLog(EventLog):
    """The events of a rank that writes none: the first one's are the run's."""

    def __init__(self) -> None:
        """Open no file."""

    def write(self, kind: str, **fields: Any) -> None:
        """Drop the event."""

    def close(self) -> None:
        """Close nothing."""


def read_events(path: Path) -> list[dict[str, Any]]:
    """Return all whole events; an unfinished last line is ignored."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    return [json.loads(line) for line in lines]


def _repair(path: Path) -> int:
    """Cut an unfinished last line off and return the last sequence number, 0 for a new file."""
    if not path.exists():
        return 0
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)
    if whole == 0:
        return 0
    last = content[:whole].rstrip(b"\n").rsplit(b"\n", 1)[-1]
    return int(json.loads(last)["seq"])
