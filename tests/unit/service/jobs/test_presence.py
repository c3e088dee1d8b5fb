"""A worker is alive while it holds its file, and not a moment longer."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.worker.file_lock import is_locked
from service.worker.presence import Presence, dead_workers, forget, seen_within

HOLDER = """
import sys, time
from pathlib import Path
from service.worker.presence import Presence
Presence(Path(sys.argv[1]), "wrk_child")
print("here", flush=True)
time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process that is present as ``wrk_child``."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        yield process
        process.kill()


def test_a_living_worker_is_not_dead_and_a_killed_one_is(
    tmp_path: Path, holder: "subprocess.Popen[str]"
) -> None:
    assert dead_workers(tmp_path) == set()
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert dead_workers(tmp_path) == {"wrk_child"}
    forget(tmp_path, {"wrk_child"})
    assert dead_workers(tmp_path) == set()


def test_a_worker_that_left_is_seen_as_gone_until_its_jobs_are_taken(tmp_path: Path) -> None:
    presence = Presence(tmp_path, "wrk_me")
    assert dead_workers(tmp_path) == set()
    presence.release()
    assert dead_workers(tmp_path) == {"wrk_me"}


def test_a_worker_of_another_host_is_left_to_its_lease(tmp_path: Path) -> None:
    Presence(tmp_path, "wrk_far").release()
    path = tmp_path / "workers" / "wrk_far.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "host": "another"}))
    assert dead_workers(tmp_path) == set()


def test_readiness_asks_for_a_recent_sign_of_life(tmp_path: Path) -> None:
    assert not seen_within(tmp_path, 15.0)
    presence = Presence(tmp_path, "wrk_me")
    path = tmp_path / "workers" / "wrk_me.json"
    os.utime(path, (1_000_000_000, 1_000_000_000))
    assert not seen_within(tmp_path, 15.0)
    presence.renew()
    assert seen_within(tmp_path, 15.0)
    presence.release()


def test_probing_a_lock_neither_takes_nor_keeps_it(tmp_path: Path) -> None:
    assert not is_locked(tmp_path / "nowhere")
    presence = Presence(tmp_path, "wrk_me")
    path = tmp_path / "workers" / "wrk_me.json"
    assert is_locked(path)
    assert is_locked(path)
    presence.release()
    assert not is_locked(path)
