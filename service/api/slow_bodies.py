"""Bodies that never come to their end: each request may wait for its sender only so long."""

import asyncio
import time

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# A frame of 256 MiB, the most that is accepted, arrives within it from any line's network.
GRACE_S = 30.0
# A sender that is slower than a modem holds a connection, and its bytes in memory, for nothing.
MIN_BYTES_PER_S = 16 * 1024
# Whatever was sent before.
MAX_SILENCE_S = 60.0
# An archive that is cut off keeps what has arrived, which its call sees to by a rule of its own.
_TIMED_ELSEWHERE = "/archive"


class SlowBodyMiddleware:
    """Answers 408 to a request whose body does not arrive.

    Only time spent waiting for the sender counts, not what the service does with its bytes: half a
    minute, and as much more as what has arrived would take at `MIN_BYTES_PER_S`.
    """

    def __init__(
        self, app: ASGIApp, grace_s: float = GRACE_S, max_silence_s: float = MAX_SILENCE_S
    ) -> None:
        self.app = app
        self._grace_s = grace_s
        self._max_silence_s = max_silence_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, whose body is timed."""
        if scope["type"] != "http" or scope["path"].endswith(_TIMED_ELSEWHERE):
            await self.app(scope, receive, send)
            return
        waited_s, received_bytes, is_whole = 0.0, 0, False

        async def timed_receive() -> Message:
            nonlocal waited_s, received_bytes, is_whole
            if is_whole:
                # What comes now is that the client has left, which may take its time.
                return await receive()
            left_s = self._grace_s + received_bytes / MIN_BYTES_PER_S - waited_s
            begin_s = time.perf_counter()
            try:
                async with asyncio.timeout(min(left_s, self._max_silence_s)):
                    message = await receive()
            except TimeoutError:
                raise _too_slow(received_bytes) from None
            waited_s += time.perf_counter() - begin_s
            received_bytes += len(message.get("body", b""))
            is_whole = not message.get("more_body", False)
            return message

        await self.app(scope, timed_receive, send)


def _too_slow(received_bytes: int) -> HTTPException:
    return HTTPException(
        408,
        f"the body did not arrive in time; {received_bytes} bytes of it did",
        # The rest of it may still come, and must not be taken for another request.
        headers={"Connection": "close"},
    )
