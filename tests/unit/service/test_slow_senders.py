"""Connections that never come to an end are ended, and honest slow ones are not."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI, Request

from service.api import problems
from service.api.request_id import RequestIdMiddleware
from service.api.slow_bodies import SlowBodyMiddleware
from service.http_protocol import MAX_HEAD_BYTES, GuardedHttpProtocol

GIVE_UP_S = 30.0
TIMEOUT_S = 0.5


class HastyProtocol(GuardedHttpProtocol):
    head_timeout_s = TIMEOUT_S
    drain_timeout_s = TIMEOUT_S


def make_app() -> FastAPI:
    app = FastAPI()
    problems.install(app)

    @app.post("/length")
    async def length(request: Request) -> int:
        return len(await request.body())

    @app.post("/refused")
    async def refuse() -> int:
        return 0

    app.add_middleware(SlowBodyMiddleware, grace_s=TIMEOUT_S)
    app.add_middleware(RequestIdMiddleware)
    return app


@pytest.fixture(scope="module")
def connect() -> Iterator[Callable[[], socket.socket]]:
    config = uvicorn.Config(make_app(), http=HastyProtocol, ws="none", log_config=None)
    server = uvicorn.Server(config)
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield lambda: socket.create_connection(listener.getsockname()[:2], timeout=GIVE_UP_S)
    server.should_exit = True
    thread.join()
    listener.close()


Connect = Callable[[], socket.socket]


def rest_of(connection: socket.socket) -> bytes:
    """All that comes until the service closes the connection."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while chunk := connection.recv(65536):
            received += chunk
    return received


def drip(connection: socket.socket, byte: bytes) -> None:
    """Send a byte now and then until the service has closed the connection."""
    end_s = time.monotonic() + GIVE_UP_S
    with contextlib.suppress(ConnectionError):
        while time.monotonic() < end_s:
            connection.sendall(byte)
            time.sleep(TIMEOUT_S / 10)
    assert time.monotonic() < end_s, "it is let wait for ever"


def answer_to(connection: socket.socket, sent: bytes) -> Any:
    """The status and the body of the answer, on a connection that stays open."""
    connection.sendall(sent)
    received = b""
    while b"\r\n\r\n" not in received:
        received += connection.recv(65536)
    head, _, body = received.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


def test_a_head_that_never_ends_is_told_so_and_closed(connect: Connect) -> None:
    with connect() as silent, connect() as dripping:
        drip(dripping, b"G")
        assert rest_of(silent).startswith(b"HTTP/1.1 408 ")


def test_a_huge_head_is_refused_before_it_fills_the_memory(connect: Connect) -> None:
    with connect() as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(b"GET / HTTP/1.1\r\nX: " + b"a" * (MAX_HEAD_BYTES + 1))
        assert rest_of(connection).startswith(b"HTTP/1.1 431 ")


def test_a_body_that_does_not_arrive_is_a_problem_with_a_name(connect: Connect) -> None:
    with connect() as connection:
        connection.sendall(b"POST /length HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc")
        head, _, body = rest_of(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    problem = json.loads(body)
    assert problem["code"] == "request_timeout"
    assert "3 bytes" in problem["detail"]


def test_the_rest_of_a_refused_body_is_not_taken_for_ever(connect: Connect) -> None:
    with connect() as connection:
        head = b"POST /refused HTTP/1.1\r\nHost: a\r\nContent-Length: 999999\r\n\r\n"
        assert answer_to(connection, head)[0] == 200
        drip(connection, b"a")


def test_an_idle_connection_may_ask_again_and_a_long_body_may_take_its_time(
    connect: Connect,
) -> None:
    whole = b"POST /length HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"
    size = 64 * 1024
    with connect() as connection:
        assert answer_to(connection, whole) == (200, b"3")
        time.sleep(2 * TIMEOUT_S)
        assert answer_to(connection, whole) == (200, b"3")
        # Four times 16 KiB may take four seconds more than the half of one that any body may.
        connection.sendall(b"POST /length HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size)
        connection.sendall(b"a" * (size - 1))
        time.sleep(2 * TIMEOUT_S)
        assert answer_to(connection, b"a") == (200, b"%d" % size)
