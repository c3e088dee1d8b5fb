"""Runs as programs of their own, several at once: ``python -m training`` on a directory each."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.quality.protocol import Profile, Run, run_config
from benchmarks.quality.versions import FrozenVersion
from benchmarks.runs_file import StaleResultsError

# Of all sets' frames about twice over; a tenth of a small disk would not hold them.
_DECODED_BYTES = 4 * 1024**3
# Who computes waits for a GPU most of the time, and leaves its core to who loads frames.
_FEWEST_LOADERS = 2
# What a run goes on from, and what nobody reads when it has finished: gigabytes, of many runs.
_LEFTOVERS = ("checkpoints", "rewind_points")


@dataclass(frozen=True)
class Share:
    """What each of several programs may take of the machine.

    Attributes:
        processes: Programs at once.
        threads: That each computes with; None leaves it to the program.
    """

    processes: int
    threads: int | None

    @classmethod
    def of_machine(cls, processes: int) -> "Share":
        """Share this process's cores evenly; a single program has the product's own defaults."""
        if processes == 1:
            return cls(1, None)
        return cls(processes, max(1, len(os.sched_getaffinity(0)) // processes))

    def environment(self) -> dict[str, str]:
        """Return the environment of a program."""
        if self.threads is None:
            return dict(os.environ)
        threads = str(self.threads)
        return {**os.environ, "OMP_NUM_THREADS": threads, "OPENCV_FOR_THREADS_NUM": threads}

    def data_section(self, decoded: Path) -> dict[str, Any]:
        """Return how a program reads frames: those of all runs on a set are decoded once."""
        cache = {"directory": str(decoded), "max_bytes": _DECODED_BYTES}
        if self.threads is None:
            return {"cache": cache}
        return {"cache": cache, "workers": max(_FEWEST_LOADERS, self.threads)}


class Trainings:
    """Trains runs of one profile in directories below a folder.

    Args:
        folder: Gets a directory a run, and the decoded frames of all.
        profile: The runs'.
        versions: By the names of the sets.
        share: Of the machine.
        most_s: After so many seconds no other run begins; None sets no limit.
    """

    def __init__(
        self,
        folder: Path,
        profile: Profile,
        versions: dict[str, FrozenVersion],
        share: Share,
        most_s: float | None = None,
    ) -> None:
        self._folder = folder.resolve()
        self._profile = profile
        self._versions = versions
        self._share = share
        self._end_s = None if most_s is None else time.monotonic() + most_s
        self._ending = threading.Event()
        self._programs: set[subprocess.Popen[bytes]] = set()

    def directory(self, run: Run) -> Path:
        """Return where a run is."""
        return self._folder / run.key

    def train(self, runs: Sequence[Run]) -> Iterator[tuple[Run, bool]]:
        """Train, or go on training, and yield each run as it ends with whether it succeeded.

        Runs that the time limit leaves out are not yielded.  Where the iterator is closed, or what
        it yields to fails, the programs at work are ended: they go on when they are asked again.

        Raises:
            StaleResultsError: A directory holds a run of other settings.
        """
        with ThreadPoolExecutor(self._share.processes) as pool:
            asked = {pool.submit(self._train, run): run for run in runs}
            try:
                for future in as_completed(asked):
                    succeeded = future.result()
                    if succeeded is not None:
                        yield asked[future], succeeded
            finally:
                self._ending.set()
                for program in tuple(self._programs):
                    program.terminate()
                pool.shutdown(wait=True, cancel_futures=True)

    def _train(self, run: Run) -> bool | None:
        """Train one run; return whether it succeeded, None if it was not begun."""
        if self._ending.is_set() or (self._end_s is not None and time.monotonic() > self._end_s):
            return None
        version, directory = self._versions[run.cell.set_name], self.directory(run)
        config = run_config(
            run,
            self._profile,
            mean_frame_area_px=version.mean_area_px,
            manifest=str(version.manifest),
            root=str(version.root),
            data=self._share.data_section(self._folder / "decoded"),
        )
        _write_config(directory, config)
        # It may have been killed between the run's end and the writing of its outcome.
        if not (directory / "report.json").exists() and not self._finish(directory):
            return False
        for name in _LEFTOVERS:
            shutil.rmtree(directory / name, ignore_errors=True)
        return True

    def _finish(self, directory: Path) -> bool:
        command = [sys.executable, "-m", "training", str(directory)]
        with (directory / "log.txt").open("ab") as log:
            program = subprocess.Popen(  # noqa: S603 - our own program.
                command, stdout=log, stderr=log, env=self._share.environment()
            )
            self._programs.add(program)
            try:
                status = program.wait()
            finally:
                self._programs.discard(program)
        return status == 0 and (directory / "report.json").exists()


def _write_config(directory: Path, config: dict[str, Any]) -> None:
    """Write a run's configuration unless it is there.

    Raises:
        StaleResultsError: Another one is there.
    """
    path = directory / "config.json"
    directory.mkdir(parents=True, exist_ok=True)
    if path.exists() and _deciding(json.loads(path.read_text())) != _deciding(config):
        raise StaleResultsError(
            f"{directory} holds a run of other settings; remove it or name another folder with "
            "--work"
        )
    path.write_text(json.dumps(config, indent=2))


def _deciding(config: dict[str, Any]) -> dict[str, Any]:
    """Return what of a configuration decides a run's result."""
    data = {name: config["data"][name] for name in ("manifest", "root")}
    return {**config, "data": data}
