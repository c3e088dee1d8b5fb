"""How the client talks HTTP: requests, pages, server-sent events, and one error for all of it."""

import json
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

JsonObject = dict[str, Any]
# One upload of many large frames over a slow line takes minutes.
DEFAULT_TIMEOUT_S = 300.0
# The service keeps idle connections for 75 s; one that it is about to close must not be used again.
_KEEP_ALIVE_S = 60.0
# A service that restarts is away for a moment.
_RETRY_PAUSES_S = (0.1, 0.4)
_REFUSED_FOR_NOW = frozenset({429, 503})

# Bytes that have arrived, and those of the whole; None if the service does not say.
Progress = Callable[[int, int | None], object]


class HairlineError(Exception):
    """The service refused a request or could not be reached; ``str()`` says what to do.

    Attributes:
        status: HTTP status; None when there was no answer.
        problem: The answer's problem, with ``code``, ``detail`` and where known ``file``, ``where``
            and ``hint``.
        retry_after_s: When to come again, of a request that was refused only for now and changed
            nothing.
    """

    def __init__(
        self, status: int | None, problem: JsonObject, retry_after_s: float | None = None
    ) -> None:
        hint = problem.get("hint")
        super().__init__(str(problem.get("detail")) + (f" ({hint})" if hint else ""))
        self.status = status
        self.problem = problem
        self.retry_after_s = retry_after_s

    @property
    def code(self) -> str:
        """The stable word for what is wrong."""
        return str(self.problem.get("code"))


class Transport:
    """Sends requests to one service; every method raises `HairlineError` when it fails.

    A request is sent again only where that can't do anything twice: when no connection came about,
    or when one that only reads lost its answer.

    Args:
        base_url: Where the service listens.
        timeout_s: For each request.
    """

    def __init__(self, base_url: str, timeout_s: float) -> None:
        limits = httpx.Limits(keepalive_expiry=_KEEP_ALIVE_S)
        self._http = httpx.Client(base_url=base_url, timeout=timeout_s, limits=limits)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def send(
        self, method: str, path: str, *, accepted: Collection[int] = (), **options: Any
    ) -> httpx.Response:
        """Return the answer to a request.

        Args:
            method: HTTP's.
            path: Below the service's address.
            accepted: Statuses besides 2xx that are no errors.
            options: httpx's.
        """
        with _transport_errors():
            response = self._request(method, path, options)
        if response.status_code not in accepted:
            _check(response)
        return response

    def _request(self, method: str, path: str, options: JsonObject) -> httpx.Response:
        for pause_s in _RETRY_PAUSES_S:
            try:
                return self._http.request(method, path, **options)
            except httpx.TransportError as error:
                if not _may_be_sent_again(method, error):
                    raise
            time.sleep(pause_s)
        return self._http.request(method, path, **options)

    def call(self, method: str, path: str, **options: Any) -> JsonObject:
        """Return the JSON object that answers a request; ``options`` are those of `send`."""
        response = self.send(method, path, **options)
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise HairlineError(response.status_code, _no_hairline(response))
        return answer

    def pages(self, path: str, query: Mapping[str, Any] | None = None) -> Iterator[JsonObject]:
        """Yield the items of a list, page after page."""
        params = dict(query or {})
        while True:
            page = self.call("GET", path, params=params)
            yield from page["items"]
            if page["next_cursor"] is None:
                return
            params["cursor"] = page["next_cursor"]

    def download(
        self,
        path: str,
        target: Path,
        query: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Write the body of an answer to a file, which is replaced when the body is whole."""
        partial = target.with_name(target.name + ".part")
        try:
            with self._stream(path, {}, query) as response, partial.open("wb") as file:
                length = response.headers.get("Content-Length")
                total = None if length is None else int(length)
                for chunk in response.iter_bytes():
                    file.write(chunk)
                    if progress is not None:
                        progress(file.tell(), total)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)

    def events(self, path: str, last_event_id: int) -> Iterator[JsonObject]:
        """Yield server-sent events as ``{"kind": …, **data}`` until the stream ends."""
        with self._stream(path, {"Last-Event-ID": str(last_event_id)}) as response:
            kind = ""
            for line in response.iter_lines():
                field, _, value = line.partition(": ")
                if field == "event":
                    kind = value
                elif field == "data":
                    yield {"kind": kind, **json.loads(value)}

    @contextmanager
    def _stream(
        self, path: str, headers: dict[str, str], query: Mapping[str, Any] | None = None
    ) -> Iterator[httpx.Response]:
        streamed = self._http.stream("GET", path, headers=headers, params=query)
        with _transport_errors(), streamed as response:
            if not response.is_success:
                response.read()
            _check(response)
            yield response


@contextmanager
def _transport_errors() -> Iterator[None]:
    try:
        yield
    except httpx.TransportError as error:
        problem = {
            "code": "unreachable",
            "detail": f"the service did not answer: {error or type(error).__name__}",
            "hint": "is it running, and is the address right?",
        }
        raise HairlineError(None, problem) from error


def _may_be_sent_again(method: str, error: httpx.TransportError) -> bool:
    if isinstance(error, httpx.ConnectError):
        return True
    lost = isinstance(error, httpx.ReadError | httpx.WriteError | httpx.RemoteProtocolError)
    return lost and method == "GET"


def _check(response: httpx.Response) -> None:
    if response.is_success:
        return
    try:
        problem = response.json()
    except ValueError:
        problem = None
    if not isinstance(problem, dict) or "code" not in problem:
        problem = _no_hairline(response)
    raise HairlineError(response.status_code, problem, _retry_after_s(response))


def _retry_after_s(response: httpx.Response) -> float | None:
    told = response.headers.get("Retry-After", "")
    is_told = response.status_code in _REFUSED_FOR_NOW and told.isascii() and told.isdecimal()
    return float(told) if is_told else None


def _no_hairline(response: httpx.Response) -> JsonObject:
    return {
        "code": "no_hairline",
        "detail": f"{response.url} answered {response.status_code}, and not as Hairline does",
        "hint": "is the address right?",
    }


def path_of(*parts: str) -> str:
    """Return a path of components; an identifier is one whatever is in it."""
    return "/" + "/".join(quote(part, safe="") for part in parts)


def idempotency(key: str | None) -> dict[str, str]:
    """Return the header that makes a creating call safe to repeat."""
    return {} if key is None else {"Idempotency-Key": key}
