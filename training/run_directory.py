"""A run is a directory; this is its layout and its lock."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from training.errors import RunLockedError


@dataclass(frozen=True)
class RunDirectory:
    """Where everything of a run lies.

    Attributes:
        path: The directory.
    """

    path: Path

    @property
    def config(self) -> Path:
        """What to do."""
        return self.path / "config.json"

    @property
    def events(self) -> Path:
        """What happened, one JSON object a line."""
        return self.path / "events.jsonl"

    @property
    def checkpoints(self) -> Path:
        """What an interrupted run goes on from."""
        return self.path / "checkpoints"

    @property
    def rewind_points(self) -> Path:
        """Checkpoints at which the network was seen to answer with numbers."""
        return self.path / "rewind_points"

    @property
    def training_frames(self) -> Path:
        """What training sees: the first frames or windows of the first epoch, one PNG."""
        return self.path / "training_frames.png"

    @property
    def decoded(self) -> Path:
        """Decoded frames of a run that shares no cache with others; gone when it has finished."""
        return self.path / "decoded"

    @property
    def report(self) -> Path:
        """How it ended."""
        return self.path / "report.json"

    @property
    def test_frames(self) -> Path:
        """What became of each test frame, one JSON object a line."""
        return self.path / "test_frames.jsonl"

    @property
    def page(self) -> Path:
        """The report for people: one HTML file that needs nothing beside it."""
        return self.path / "report.html"

    @property
    def gallery(self) -> Path:
        """The worst misses and false alarms as pictures, with an index."""
        return self.path / "gallery"

    @property
    def bundle(self) -> Path:
        """The model."""
        return self.path / "bundle"

    @property
    def memory(self) -> Path:
        """What the run was estimated to take and which steps down it took."""
        return self.path / "memory.json"

    @property
    def step_in_flight(self) -> Path:
        """The step at work; left behind by a program that died in it."""
        return self.path / "step_in_flight.json"

    @property
    def short_rank(self) -> Path:
        """Left behind by a process other than the first whose memory ran out."""
        return self.path / "short_rank.json"

    @property
    def cancel_requested(self) -> bool:
        """Whether somebody asked the run to stop."""
        return (self.path / "requests" / "cancel").exists()

    @property
    def yield_request(self) -> Path:
        """To whom the run makes way between its steps, if somebody asked it to."""
        return self.path / "requests" / "yield.json"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for this process.

        The kernel releases the lock when the process ends, however it ends, so that a free lock
        means a dead run.

        Raises:
            RunLockedError: If another process holds it.
        """
        descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RunLockedError(
                    "run_locked",
                    f"another process is at work in {self.path}",
                    hint="wait for it, or end it first",
                ) from error
            yield
        finally:
            os.close(descriptor)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write one of a run's files beside its place and move it there: whole or not at all.

    An older one is replaced.  After a power cut it may be missing or empty, which a checkpoint,
    written by `training.checkpoint`, may not.
    """
    partial = path.with_name(f"{path.name}.partial")
    partial.write_bytes(content.encode() if isinstance(content, str) else content)
    partial.rename(path)
