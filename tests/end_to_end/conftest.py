"""The real service: `hairline serve` in a process of its own, reached over HTTP."""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from service.client import HairlineClient

# Two processes import torch on a machine that may be busy with other tests.
START_S = 180.0


class RunningService:
    """`hairline serve` over one storage directory."""

    def __init__(self, storage: Path) -> None:
        self.storage = storage
        self._log = storage.with_name("service.log").open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "service.cli", "serve", "--storage", storage, "--port", "0"],
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        assert self.process.stdout is not None
        announcement = self.process.stdout.readline()
        assert announcement.startswith("Hairline listens on http://"), self.log()
        self.url = announcement.split()[-1]
        self.client = HairlineClient(self.url)

    def wait_until_ready(self) -> "RunningService":
        self.client.wait_until_ready(START_S)
        return self

    def child(self, role: str) -> psutil.Process:
        """The living child process of that role: ``api`` or ``worker``."""
        children = psutil.Process(self.process.pid).children()
        return next(child for child in children if role in child.cmdline())

    def log(self) -> str:
        return self.storage.with_name("service.log").read_text()

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def close(self) -> None:
        self.client.close()
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._log.close()


def kill_everything_over(storage: Path) -> None:
    """Kill every program that works under this directory, e.g. training left on purpose."""
    for process in psutil.process_iter():
        try:
            if any(str(storage) in argument for argument in process.cmdline()):
                process.kill()
        except psutil.Error:
            continue


@pytest.fixture
def start_service(tmp_path: Path) -> Iterator[Callable[[], RunningService]]:
    """Start the service, again and again if wanted, over one storage directory."""
    storage = tmp_path / "storage"
    services = []

    def start() -> RunningService:
        services.append(RunningService(storage))
        return services[-1].wait_until_ready()

    yield start
    for service in services:
        service.close()
    kill_everything_over(storage)
