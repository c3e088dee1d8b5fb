"""One run under a worker's eyes: its process, its events so far, and how it ended."""

import time
from pathlib import Path
from typing import Any

from service.jobs.events import Event, EventReader, RunView, fold
from service.jobs.run_directory import read_attempt_seq, request_cancel
from service.jobs.states import ACTIVE, JobStatus
from service.worker.run_process import RunProcess


class FollowedRun:
    """Reads a run's events and knows whether its program is alive.

    Args:
        job_id: The job the run belongs to.
        run_dir: The run's directory.
        process: Its program, or None when it was found dead.
    """

    def __init__(self, job_id: str, run_dir: Path, process: RunProcess | None) -> None:
        self.job_id = job_id
        self.run_dir = run_dir
        self._process = process
        self._reader = EventReader(run_dir)
        self._attempt_seq = read_attempt_seq(run_dir)
        self._changed_at = time.monotonic()
        self.view = RunView()

    def look(self) -> bool:
        """Read what is new; return whether the program is alive.

        Life is probed first: events read after a death are all there will ever be.
        """
        alive = self._process is not None and self._process.is_alive()
        events = self._reader.read() if alive else self._reader.read_all()
        if events:
            self.view = fold(self.view, events)
            self._changed_at = time.monotonic()
        return alive

    def ask_to_stop(self) -> None:
        """Ask the program to stop at its next step; asking again changes nothing."""
        request_cancel(self.run_dir)

    def silent_for_s(self) -> float:
        """Return how long ago the last event was seen, in seconds."""
        return time.monotonic() - self._changed_at

    def kill(self) -> None:
        """End a program that does not answer."""
        if self._process is not None:
            self._process.kill(self.view.pid)

    @property
    def terminal(self) -> Event | None:
        """The event that ended this attempt, if any; one of an earlier attempt does not count."""
        event = self.view.terminal
        return event if event is not None and event.seq > self._attempt_seq else None

    @property
    def stage(self) -> JobStatus | None:
        """The active state that this attempt's newest stage stands for, if any."""
        if self.view.stage_seq <= self._attempt_seq or self.view.stage not in ACTIVE:
            return None
        return JobStatus(self.view.stage)

    @property
    def reached_checkpoint(self) -> bool:
        """Whether this attempt wrote a checkpoint, so that its work is not lost."""
        return self.view.last_checkpoint_seq > self._attempt_seq

    def describe_exit(self) -> str:
        """Return in plain words how the program ended."""
        return "was gone" if self._process is None else self._process.describe_exit()

    def row_values(self) -> dict[str, Any]:
        """Return the columns of the job's row that the events determine."""
        return {
            "progress": self.view.progress,
            "metrics": self.view.metrics,
            "warnings": list(self.view.warnings),
        }
