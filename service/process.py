"""One child of `hairline serve`: ``python -m service.process api|worker LIFELINE [LISTENER]``."""

import os
import signal
import socket
import sys
import threading
from types import FrameType

from service.serve import API_GRACE_S, configure_logging
from service.settings import Settings

# A thread that computes in Python keeps the interpreter for so long before others get a turn.  An
# answer waits for dozens of turns while the API lists frames or loads a model; the default of 5 ms
# each made it late (``docs/decisions/0044``).
SWITCH_INTERVAL_S = 1e-4


def main(arguments: list[str]) -> None:
    """Run the role named by the first argument until SIGTERM or the supervisor's end."""
    role, lifeline, *listener = arguments
    threading.Thread(target=_leave_with, args=(int(lifeline),), daemon=True).start()
    configure_logging()
    if role == "api":
        run_api(Settings(), int(listener[0]))
    else:
        run_worker(Settings())


def _leave_with(lifeline: int) -> None:
    # Nobody ever writes: the read returns when the supervisor, alive or killed, has let go.  This
    # process may then be killed too at any point, so nothing is lost by leaving at once.
    os.read(lifeline, 1)
    os._exit(1)


def run_api(settings: Settings, listener: int) -> None:
    """Answer requests on an open socket until SIGTERM; requests under way are finished.

    Side effects: sets the interpreter's switch interval.
    """
    import uvicorn

    from service.api.app import create_app
    from service.http_protocol import KEEP_ALIVE_S, GuardedHttpProtocol
    from service.serving.heap import settle_heap

    sys.setswitchinterval(SWITCH_INTERVAL_S)
    app = create_app(settings)
    app.state.inference.on_first_load = settle_heap
    app.state.stopping = threading.Event()

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            # Event streams have no end of their own and would hold the server open.
            app.state.stopping.set()
            super().handle_exit(sig, frame)

    config = uvicorn.Config(
        app,
        http=GuardedHttpProtocol,
        # No call is a web socket.
        ws="none",
        log_config=None,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=API_GRACE_S,
    )
    Server(config).run(sockets=[socket.socket(fileno=listener)])


def run_worker(settings: Settings) -> None:
    """Work on jobs and imports until SIGTERM."""
    from service.database.engine import open_engine
    from service.storage import Storage
    from service.worker.worker import Worker

    stop = threading.Event()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    Worker(settings, open_engine(settings), Storage(settings.storage_dir)).run(stop)


if __name__ == "__main__":
    main(sys.argv[1:])
