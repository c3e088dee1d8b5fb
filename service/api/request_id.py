"""One identifier for each request: on the answer, in every problem and in the log."""

from contextvars import ContextVar

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.ids import new_id

HEADER = "X-Request-Id"

_current: ContextVar[str] = ContextVar("hairline_request_id", default="req_none")


def current_request_id() -> str:
    """Return the identifier of the request being answered, ``req_none`` outside of one."""
    return _current.get()


class RequestIdMiddleware:
    """Gives each request an identifier; one sent by the caller is not trusted."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request under a new identifier."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = new_id("req")

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[HEADER] = request_id
            await send(message)

        # Kept in the scope too: the handler of last resort runs outside of this context.
        scope.setdefault("state", {})["request_id"] = request_id
        token = _current.set(request_id)
        try:
            await self.app(scope, receive, send_with_id)
        finally:
            _current.reset(token)
