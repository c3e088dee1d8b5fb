"""The real service for a benchmark: `hairline serve` over a folder, reached over HTTP."""

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

from service.client import HairlineClient

_START_S = 180.0
_STOP_S = 60.0


@contextlib.contextmanager
def running_service(folder: Path) -> Iterator[tuple[HairlineClient, str, psutil.Process]]:
    """Yield a client, the service's URL and its API process; the service ends with the block.

    Raises:
        RuntimeError: The service does not start; the message holds its log.
    """
    log = folder / "service.log"
    program = [sys.executable, "-m", "service.cli", "serve"]
    program += ["--storage", str(folder / "storage"), "--port", "0"]
    with (
        log.open("wb") as errors,
        subprocess.Popen(program, stdout=subprocess.PIPE, stderr=errors, text=True) as process,  # noqa: S603 - our own program.
    ):
        try:
            assert process.stdout is not None
            announcement = process.stdout.readline()
            if "http://" not in announcement:
                raise RuntimeError(f"the service did not start: {log.read_text()}")
            url = announcement.split()[-1]
            with HairlineClient(url) as client:
                client.wait_until_ready(_START_S)
                children = psutil.Process(process.pid).children()
                yield client, url, next(child for child in children if "api" in child.cmdline())
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
