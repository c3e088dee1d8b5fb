"""`hairline serve`: a supervisor over two processes, the API and the worker.

The supervisor opens the listening socket, so a request that comes while the API restarts waits
instead of being refused.  Its children hold one end of a pipe and leave when the other end closes:
they don't outlive a supervisor that was killed.  Training programs do, on purpose; the next worker
adopts them.
"""

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import FrameType, MappingProxyType

from service.database.engine import open_engine
from service.database.migrate import upgrade
from service.settings import Settings
from service.storage import Storage

logger = logging.getLogger(__name__)

# A child that lived this long was well; its next death is a new story.
_HEALTHY_S = 60.0
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
# The API finishes its requests; a frame on a slow processor takes seconds.
API_GRACE_S = 20
_STOP_GRACE_S = API_GRACE_S + 10.0
_POLL_S = 0.2
QUIET_ENVIRONMENT = {
    # Training and inference share the cores: threads that spin while they wait made a training step
    # on two cores 50 times slower beside a second torch process.  OpenMP reads this at its start,
    # and the training program inherits it.
    "OMP_WAIT_POLICY": "PASSIVE",
    # The box may have no internet, and nobody asked for downloads or telemetry.
    "HF_HUB_OFFLINE": "1",
    "NO_ALBUMENTATIONS_UPDATE": "1",
    "DO_NOT_TRACK": "true",
}


def configure_logging() -> None:
    """Send the log of this process to standard error, one line an entry."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    # One line a revision at every start says nothing.
    logging.getLogger("alembic").setLevel(logging.WARNING)


def serve(settings: Settings, announce: Callable[[str], object]) -> None:
    """Run the service until SIGTERM or SIGINT.

    Args:
        settings: The installation's.
        announce: Is told the URL the service listens on.

    Side effects: creates the storage directory, migrates the database, starts processes, replaces
    the handlers of SIGTERM and SIGINT.

    Raises:
        OSError: The address can't be listened on.
        StorageError: The storage directory can't be used.
    """
    storage = Storage(settings.storage_dir)
    engine = open_engine(settings)
    upgrade(engine)
    # SQLite files must not be open in a process that forks.
    engine.dispose()
    with _listen(settings) as listener, _lifeline() as lifeline:
        stop = threading.Event()
        _set_on_signals(stop)
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        announce(f"http://{shown}:{port}")
        children = [
            # Large request bodies are spooled to disk: into the storage, which has the room and is
            # tidied, and not into a temporary folder that may be small or in memory.
            Child(
                "api",
                settings,
                lifeline,
                listener.fileno(),
                extra_environment={"TMPDIR": str(storage.spool_dir)},
            ),
            Child("worker", settings, lifeline),
        ]
        while not stop.is_set():
            for child in children:
                child.keep_alive()
            stop.wait(_POLL_S)
        for child in children:
            child.ask_to_stop()
        deadline = time.monotonic() + _STOP_GRACE_S
        for child in children:
            child.wait_or_kill(deadline)


def _set_on_signals(stop: threading.Event) -> None:
    def on_signal(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    return socket.create_server((settings.host, settings.port), family=family, backlog=256)


@contextlib.contextmanager
def _lifeline() -> Iterator[int]:
    """Yield the reading end of a pipe whose writing end closes when this process ends."""
    reading, writing = os.pipe()
    try:
        yield reading
    finally:
        os.close(writing)
        os.close(reading)


class Child:
    """One supervised process, started again when it dies, with growing pauses."""

    def __init__(
        self,
        role: str,
        settings: Settings,
        lifeline: int,
        listener: int | None = None,
        *,
        extra_environment: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._role = role
        self._environment = {
            **QUIET_ENVIRONMENT,
            **os.environ,
            **settings_environment(settings),
            **extra_environment,
        }
        self._descriptors = (lifeline,) if listener is None else (lifeline, listener)
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._start_at = 0.0
        self._pause_s = _FIRST_PAUSE_S

    def keep_alive(self) -> None:
        """Start the process if it does not run and its pause is over."""
        now = time.monotonic()
        if self._process is not None and (code := self._process.poll()) is not None:
            if now - self._started_at >= _HEALTHY_S:
                self._pause_s = _FIRST_PAUSE_S
            logger.error(
                "the %s ended with %d; next start in %.1f s", self._role, code, self._pause_s
            )
            self._process = None
            self._start_at = now + self._pause_s
            self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
        if self._process is None and now >= self._start_at:
            self._start(now)

    def ask_to_stop(self) -> None:
        """Ask the process to finish what it is at and leave."""
        if self._process is not None:
            self._process.terminate()

    def wait_or_kill(self, deadline: float) -> None:
        """Wait for the process until ``deadline`` on the monotonic clock, then kill it."""
        if self._process is None:
            return
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            logger.warning("the %s did not leave and was killed", self._role)
            self._process.kill()
            self._process.wait()

    def _start(self, now: float) -> None:
        arguments = [str(descriptor) for descriptor in self._descriptors]
        self._process = subprocess.Popen(  # noqa: S603 - our own program and numbers.
            [sys.executable, "-m", "service.process", self._role, *arguments],
            pass_fds=self._descriptors,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            # Ctrl-C reaches the whole foreground group; the children are told by the supervisor.
            process_group=0,
        )
        self._started_at = now
        logger.info("the %s is process %d", self._role, self._process.pid)


def settings_environment(settings: Settings) -> dict[str, str]:
    """Return the settings as the environment variables that `Settings` reads."""
    prefix = settings.model_config.get("env_prefix", "")
    values = settings.model_dump(mode="json", exclude_none=True)
    values["storage_dir"] = str(settings.storage_dir.resolve())
    return {f"{prefix}{name}".upper(): str(value) for name, value in values.items()}
