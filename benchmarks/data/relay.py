"""A relay between a client and a server that counts what the client sends.

It counts outside of both, so a byte counts also when a killed server forgets that it had it.
"""

import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress

_CHUNK_BYTES = 64 * 1024


class Relay:
    """Passes connections on, and does something when the client has sent so many bytes.

    Args:
        port: Where the server listens, now or later.
        triggers: Byte counts in rising order, each with what is done then, once.
        alter: What becomes of each chunk that the client sends; None passes it on as it is.
    """

    def __init__(
        self,
        port: int,
        triggers: Sequence[tuple[int, Callable[[], None]]],
        alter: Callable[[bytes], bytes] | None = None,
    ) -> None:
        self._server = ("127.0.0.1", port)
        self._triggers = list(triggers)
        self._alter = alter
        self._lock = threading.Lock()
        self.sent_bytes = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def triggers_left(self) -> int:
        """How many triggers are still to come."""
        return len(self._triggers)

    def close(self) -> None:
        """Take no more connections."""
        # Closing alone does not wake the thread that waits in accept().
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        with client:
            try:
                server = socket.create_connection(self._server, timeout=30)
            except OSError:
                return
            server.settimeout(None)
            with server:
                back = threading.Thread(target=_pump, args=(server, client), daemon=True)
                back.start()
                _pump(client, server, self._pass)
                back.join()

    def _pass(self, chunk: bytes) -> bytes:
        with self._lock:
            self.sent_bytes += len(chunk)
            if self._triggers and self.sent_bytes >= self._triggers[0][0]:
                self._triggers.pop(0)[1]()
            return chunk if self._alter is None else self._alter(chunk)


def _pump(
    source: socket.socket, target: socket.socket, alter: Callable[[bytes], bytes] | None = None
) -> None:
    with suppress(OSError):
        while chunk := source.recv(_CHUNK_BYTES):
            target.sendall(chunk if alter is None else alter(chunk))
    # Whichever side ended, the connection is over for both.
    for side in (source, target):
        with suppress(OSError):
            side.shutdown(socket.SHUT_RDWR)
