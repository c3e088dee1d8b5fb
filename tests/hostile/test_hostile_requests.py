"""Thousands of requests that no honest client sends: no failure, no growth, and it still answers.

``HAIRLINE_HOSTILE_REQUESTS=5000 .venv/bin/pytest tests/hostile`` searches longer and at random.
"""

import logging
import os
import socket
import time
from collections import Counter
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import psutil
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.core.result import Ok

from service.http_protocol import HEAD_TIMEOUT_S
from tests.end_to_end.conftest import RunningService
from tests.hostile.broken_requests import FORM, PICTURES, exchange, form, hostile, request
from tests.served_model import add_untrained_model

logger = logging.getLogger(__name__)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]

REQUESTS = int(os.environ.get("HAIRLINE_HOSTILE_REQUESTS", "600"))
IS_LONG = "HAIRLINE_HOSTILE_REQUESTS" in os.environ
# Of all requests, made from the API's own description; the rest are bytes that break HTTP too.
DESCRIBED = REQUESTS // 3
SLOW_SENDERS = 20
# For a machine that is busy with other tests.
PATIENCE_S = 60.0
# Resident memory may grow while threads start and caches fill.  By the slope over the second half
# of the requests all of them may not add more than this: a leak of 13 KiB a request of 5000.
MAX_GROWTH_BYTES = 64 * 1024**2

Start = Callable[[], RunningService]

searching = settings(
    database=None,
    deadline=None,
    derandomize=not IS_LONG,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture
def service(start_service: Start) -> RunningService:
    service = start_service()
    model = add_untrained_model(service.storage, "a", threshold=0.01)
    service.client.deploy("default", model)
    return service


class SlowSenders:
    """Connections that send a byte now and then and never come to an end."""

    def __init__(self, url: str, count: int) -> None:
        address = urlsplit(url)
        self._sockets = [
            socket.create_connection((str(address.hostname), int(address.port or 80)))
            for _ in range(count)
        ]

    def drip(self) -> int:
        """Send a byte on each and return how many are still open."""
        is_open = 0
        for connection in self._sockets:
            try:
                connection.send(b"G")
                connection.setblocking(False)
                is_open += bool(_nothing_yet(connection))
            except OSError:
                continue
        return is_open

    def close(self) -> None:
        for connection in self._sockets:
            connection.close()


def _nothing_yet(connection: socket.socket) -> bool:
    """Whether the other side has neither answered nor closed."""
    try:
        connection.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return True
    return False


class Watched:
    """Counts answers, and follows the resident memory of the API's process."""

    def __init__(self, service: RunningService) -> None:
        self._process = service.child("api")
        self.statuses: Counter[int | None] = Counter()
        self.failures: list[str] = []
        self.memory_bytes: list[int] = []

    @property
    def count(self) -> int:
        return sum(self.statuses.values())

    def note(self, kind: str, sent: object, status: int | None, answer: bytes) -> None:
        self.statuses[status] += 1
        # A full queue may say 503, and says when to come again; nothing here fills it.
        if status is not None and status >= 500:
            self.failures.append(f"{kind}: {status}\n{sent!r}"[:2000] + f"\n{answer!r}"[:1000])
            logger.error("%s", self.failures[-1])
        if self.count % 10 == 0:
            self.memory_bytes.append(self._process.memory_info().rss)
            logger.debug("%d requests, %d bytes", self.count, self.memory_bytes[-1])

    def growth_bytes_per_request(self) -> float:
        """The slope of the resident memory over the second half of the requests."""
        later = np.array(self.memory_bytes[len(self.memory_bytes) // 2 :], float)
        return float(np.polyfit(10.0 * np.arange(len(later)), later, 1)[0])


def send_described(service: RunningService, watched: Watched) -> None:
    """Send what schemathesis makes of the API's description, within its rules and against them."""
    schema = schemathesis.openapi.from_url(f"{service.url}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations() if isinstance(found, Ok)]
    modes = (schemathesis.GenerationMode.NEGATIVE, schemathesis.GenerationMode.POSITIVE)
    cases = st.one_of(
        [operation.as_strategy(generation_mode=mode) for operation in operations for mode in modes]
    )

    @settings(searching, max_examples=DESCRIBED)
    @given(cases)
    def send(case: schemathesis.Case[Any]) -> None:
        answer = case.call(timeout=60)
        watched.note(
            f"{case.method} {case.path}", case.as_curl_command(), answer.status_code, answer.content
        )

    send()


def send_broken(service: RunningService, watched: Watched) -> None:
    """Send what is no proper request at all."""

    @settings(searching, max_examples=REQUESTS - DESCRIBED)
    @given(hostile())
    def send(hostility: tuple[str, bytes]) -> None:
        kind, sent = hostility
        watched.note(kind, sent, *exchange(service.url, sent))

    send()


def test_hostile_requests_fail_nothing_and_leave_nothing_behind(service: RunningService) -> None:
    honest = request(b"POST", b"/predict", FORM, form(PICTURES[0][1]))
    assert exchange(service.url, honest)[0] == 200
    slow = SlowSenders(service.url, SLOW_SENDERS)
    watched = Watched(service)
    connections_before = len(psutil.Process(watched._process.pid).net_connections())

    send_described(service, watched)
    slow.drip()
    send_broken(service, watched)

    assert watched.failures == []
    assert watched.count >= 0.9 * REQUESTS
    growth = watched.growth_bytes_per_request()
    logger.info(
        "%d requests, %s; %.0f bytes a request, from %d to %d",
        *(watched.count, dict(watched.statuses), growth),
        *(watched.memory_bytes[0], watched.memory_bytes[-1]),
    )
    assert growth * watched.count <= MAX_GROWTH_BYTES
    end_s = time.monotonic() + HEAD_TIMEOUT_S + PATIENCE_S
    while slow.drip():
        assert time.monotonic() < end_s, "slow senders are let wait for ever"
        time.sleep(0.5)
    slow.close()
    answer = httpx.get(f"{service.url}/healthz", timeout=60)
    assert answer.status_code == 200
    assert exchange(service.url, honest)[0] == 200
    assert len(psutil.Process(watched._process.pid).net_connections()) <= connections_before + 2
