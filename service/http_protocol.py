"""HTTP/1.1 with limits on what a sender may keep open: uvicorn sets none for a request's head."""

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# A head is a packet or two; a line's network that needs longer for it has broken down.
HEAD_TIMEOUT_S = 10.0
# Once its answer is given, how long the rest of a refused body may take to arrive.
DRAIN_TIMEOUT_S = 10.0
# Addresses, tokens and traces take a few thousand bytes; the parser has no limit of its own.
MAX_HEAD_BYTES = 64 * 1024
# A line that pauses for a minute need not connect anew.
KEEP_ALIVE_S = 75


class GuardedHttpProtocol(HttpToolsProtocol):
    """Closes connections whose request head is slow or huge, or whose refused body never ends.

    Bodies that are wanted are timed by `service.api.slow_bodies`, which can answer for them.

    Attributes:
        head_timeout_s: How long a head may take.
        drain_timeout_s: How long the rest of a body may take once its answer is given.
    """

    head_timeout_s = HEAD_TIMEOUT_S
    drain_timeout_s = DRAIN_TIMEOUT_S
    _awaits_head = True
    _head_bytes = 0
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # As in uvicorn.
        """Expect a head."""
        super().connection_made(transport)
        self._start_timer(self.head_timeout_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """Expect nothing any more."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came, and close the connection if it is too much of a head."""
        if self._awaits_head:
            self._head_bytes += len(data)
            self._start_timer(self.head_timeout_s)
        elif self.cycle is not None and self.cycle.response_complete:
            self._start_timer(self.drain_timeout_s)
        super().data_received(data)
        if self._awaits_head and self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(
                b"431 Request Header Fields Too Large",
                b"the request's head has more than %d bytes" % MAX_HEAD_BYTES,
            )

    def on_headers_complete(self) -> None:
        """Begin to answer; the head is whole."""
        self._awaits_head = False
        self._head_bytes = 0
        self._stop_timer()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Expect the next request's head, once its first byte has come."""
        self._awaits_head = True
        self._stop_timer()
        super().on_message_complete()

    def _start_timer(self, timeout_s: float) -> None:
        # One that runs goes on: each byte of a slow head must not give it more time.
        if self._timer is None:
            self._timer = self.loop.call_later(timeout_s, self._on_slow_sender)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_slow_sender(self) -> None:
        if self._awaits_head:
            self._refuse(b"408 Request Timeout", b"the request's head did not arrive in time")
        else:
            self.transport.close()

    def _refuse(self, status: bytes, detail: bytes) -> None:
        if self.transport.is_closing():
            return
        # The application never saw this request, so its problems and identifiers don't apply.
        head = b"HTTP/1.1 %s\r\ncontent-type: text/plain\r\ncontent-length: %d\r\n"
        head += b"connection: close\r\n\r\n"
        self.transport.write(head % (status, len(detail)) + detail)
        self.transport.close()
