"""The files of a run that the service reads and writes; the rest belong to the training program."""

import json
import os
from pathlib import Path
from typing import Any

LOCK_FILE = "lock"
LOG_FILE = "log.txt"
CONFIG_FILE = "config.json"
REPORT_FILE = "report.json"
REPORT_PAGE_FILE = "report.html"
BUNDLE_DIR = "bundle"
TEST_FRAMES_FILE = "test_frames.jsonl"
TRAINING_FRAMES_FILE = "training_frames.png"
_CANCEL_REQUEST = Path("requests") / "cancel"
_YIELD_REQUEST = Path("requests") / "yield.json"
_ATTEMPT_FILE = "attempt.json"


def write_config(run_dir: Path, config: dict[str, Any]) -> None:
    """Write the run's configuration unless an earlier attempt did: a run never changes its own."""
    path = run_dir / CONFIG_FILE
    if not path.exists():
        run_dir.mkdir(parents=True, exist_ok=True)
        _write_durably(path, json.dumps(config, indent=2).encode())


def request_cancel(run_dir: Path) -> None:
    """Ask the run to stop at its next step."""
    request = run_dir / _CANCEL_REQUEST
    request.parent.mkdir(parents=True, exist_ok=True)
    request.touch()


def request_yield(run_dir: Path, mark: Path, longest_pause_s: float) -> None:
    """Ask the run to make way between its steps while ``mark`` changes; 0 s takes it back."""
    request = run_dir / _YIELD_REQUEST
    if longest_pause_s == 0:
        request.unlink(missing_ok=True)
        return
    request.parent.mkdir(parents=True, exist_ok=True)
    asked = {"mark": str(mark), "longest_pause_s": longest_pause_s}
    _write_durably(request, json.dumps(asked).encode())


def start_attempt(run_dir: Path, after_seq: int) -> None:
    """Make the directory ready for the next start: forget old requests, mark where it begins."""
    (run_dir / _CANCEL_REQUEST).unlink(missing_ok=True)
    _write_durably(run_dir / _ATTEMPT_FILE, json.dumps({"after_seq": after_seq}).encode())


def read_attempt_seq(run_dir: Path) -> int:
    """Return the last event's ``seq`` from before the newest attempt; 0 before the first.

    A terminal event up to it ended an earlier attempt of a job that was resumed since.
    """
    try:
        attempt = json.loads((run_dir / _ATTEMPT_FILE).read_bytes())
    except FileNotFoundError:
        return 0
    seq = attempt["after_seq"]
    assert isinstance(seq, int)
    return seq


def read_log_tail(run_dir: Path, *, max_bytes: int) -> str:
    """Return the end of what the program printed, from the beginning of a line."""
    try:
        with (run_dir / LOG_FILE).open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - max_bytes))
            tail = file.read(max_bytes)
    except FileNotFoundError:
        return ""
    if size > max_bytes:
        tail = tail[tail.find(b"\n") + 1 :]
    return tail.decode(errors="replace")


def _write_durably(path: Path, content: bytes) -> None:
    """Replace ``path`` in one step: a power cut leaves the old content or the new."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
