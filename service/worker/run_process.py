"""The training program of one job: starting it and finding it alive.

The program lives in a session of its own and survives the worker.  Whether it is alive is asked of
the kernel through the lock it holds on its directory: a process id may be reused, a lock that died
with its holder may not.
"""

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import psutil

from service.jobs.run_directory import LOCK_FILE, LOG_FILE
from service.worker.file_lock import is_locked

logger = logging.getLogger(__name__)

TRAINING_COMMAND = (sys.executable, "-m", "training")


class RunProcess:
    """A living training program: one this worker started, or one it found at work and adopted."""

    def __init__(self, run_dir: Path, child: subprocess.Popen[bytes] | None = None) -> None:
        self._run_dir = run_dir
        self._child = child

    @classmethod
    def start(cls, run_dir: Path, command: Sequence[str] = TRAINING_COMMAND) -> Self:
        """Start the program over ``run_dir`` in a session of its own, appending to its log."""
        with (run_dir / LOG_FILE).open("ab") as log:
            child = subprocess.Popen(  # noqa: S603 - our own program and a path of our own making.
                [*command, str(run_dir)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        logger.info("%s: started process %d", run_dir.name, child.pid)
        return cls(run_dir, child)

    @classmethod
    def adopt(cls, run_dir: Path) -> Self | None:
        """Return the program that is alive over ``run_dir``, or None when there is none."""
        return cls(run_dir) if is_locked(run_dir / LOCK_FILE) else None

    def is_alive(self) -> bool:
        """Return whether the program still runs; reaps a child that has ended."""
        if self._child is not None and self._child.poll() is None:
            return True
        # A child that found the lock held by another attempt has ended, but the run has not.
        return is_locked(self._run_dir / LOCK_FILE)

    def kill(self, pid: int | None) -> None:
        """Kill the program; ``pid`` is what it said of itself, for one that was adopted."""
        if self._child is not None and self._child.poll() is None:
            self._child.kill()
        elif pid is not None and _works_on(pid, self._run_dir):
            os.kill(pid, signal.SIGKILL)

    def describe_exit(self) -> str:
        """Return in plain words how the program ended, as far as this worker can know."""
        code = None if self._child is None else self._child.poll()
        if code is None:
            return "ended without a word"
        if code == -signal.SIGKILL:
            return "was killed (SIGKILL); the usual reason is that the machine ran out of memory"
        if code < 0:
            return f"was ended by signal {signal.Signals(-code).name}"
        return f"ended with exit code {code}"


def _works_on(pid: int, run_dir: Path) -> bool:
    # The number alone proves nothing: it may name another process by now, or one in another
    # container that shares the directory.
    try:
        return str(run_dir) in psutil.Process(pid).cmdline()
    except psutil.Error:
        return False
