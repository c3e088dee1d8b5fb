"""Requests that no honest client sends, as bytes for a socket, and what comes back."""

import contextlib
import io
import socket
import zlib
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from PIL import Image

ANSWER_TIMEOUT_S = 60.0
Sent = tuple[str, bytes]


def exchange(url: str, sent: bytes) -> tuple[int | None, bytes]:
    """Send bytes, close the sending end, and return the status and all that came back.

    The status is None if the service closed the connection without a word, as it may for bytes
    that are no request.
    """
    address = urlsplit(url)
    connection = socket.create_connection(
        (str(address.hostname), int(address.port or 80)), timeout=ANSWER_TIMEOUT_S
    )
    received = b""
    with connection, contextlib.suppress(ConnectionError):
        connection.sendall(sent)
        while b"\r\n\r\n" not in received and (chunk := connection.recv(65536)):
            received += chunk
    words = received.split(b" ", 2)
    return (int(words[1]) if len(words) > 2 and words[1].isdigit() else None), received


def request(
    method: bytes, target: bytes, headers: dict[bytes, bytes] | None = None, body: bytes = b""
) -> bytes:
    lines = {b"Host": b"hairline", b"Content-Length": b"%d" % len(body), **(headers or {})}
    head = b"".join(b"%s: %s\r\n" % line for line in lines.items())
    return b"%s %s HTTP/1.1\r\n%s\r\n%s" % (method, target, head, body)


def _pictures() -> list[tuple[bytes, bytes]]:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 56), dtype=np.uint8)
    found = []
    for kind in ("PNG", "JPEG", "BMP", "TIFF", "WEBP"):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, kind)
        found.append((f"image/{kind.lower()}".encode(), buffer.getvalue()))
    return found


PICTURES = _pictures()
BOUNDARY = b"frontier"


def form(content: bytes, name: bytes = b"file", filename: bytes = b"a.png") -> bytes:
    return (
        b'--%s\r\nContent-Disposition: form-data; name="%s"; filename="%s"\r\n'
        b"Content-Type: image/png\r\n\r\n%s\r\n--%s--\r\n"
        % (BOUNDARY, name, filename, content, BOUNDARY)
    )


FORM = {b"Content-Type": b"multipart/form-data; boundary=" + BOUNDARY}
PREDICTS = (b"/predict", b"/predict/part?part_id=a")


@st.composite
def damaged_pictures(draw: Any) -> Sent:
    """A picture that is cut off or has flipped bytes, as a body or as a form's part."""
    kind, raw = draw(st.sampled_from(PICTURES))
    damaged = bytearray(raw[: draw(st.integers(0, len(raw)))])
    for _ in range(draw(st.integers(0, 4))):
        if damaged:
            damaged[draw(st.integers(0, len(damaged) - 1))] = draw(st.integers(0, 255))
    if draw(st.booleans()):
        return "damaged picture", request(
            b"POST", b"/predict", {b"Content-Type": kind}, bytes(damaged)
        )
    return "damaged picture in a form", request(
        b"POST", draw(st.sampled_from(PREDICTS)), FORM, form(bytes(damaged))
    )


@st.composite
def damaged_forms(draw: Any) -> Sent:
    """A form that is cut off, torn in the middle, or whose parts are named oddly."""
    names = st.binary(max_size=30).filter(lambda name: b"\r" not in name and b"\n" not in name)
    whole = form(PICTURES[0][1], draw(st.sampled_from((b"file", draw(names)))), draw(names))
    begin = draw(st.integers(0, 40))
    torn = whole[begin : draw(st.integers(begin, len(whole)))]
    return "damaged form", request(b"POST", draw(st.sampled_from(PREDICTS)), FORM, torn)


@st.composite
def lying_buffers(draw: Any) -> Sent:
    """A camera's buffer whose headers say something else, or nothing that can be meant."""
    numbers = st.one_of(
        st.integers(-5, 300).map(str),
        st.sampled_from(("999999999", "1e3", "0x10", "nan", "", "٣", "9" * 400)),
    )
    formats = ("Mono8", "Mono16", "RGB8", "BayerRG8", "Mono12", "\x7f", "")
    headers = {
        b"Content-Type": b"application/octet-stream",
        b"X-Width": draw(numbers).encode(),
        b"X-Height": draw(numbers).encode(),
        b"X-Pixel-Format": draw(st.sampled_from(formats)).encode(),
        **({b"X-Stride": draw(numbers).encode()} if draw(st.booleans()) else {}),
    }
    return "lying buffer", request(b"POST", b"/predict", headers, draw(st.binary(max_size=200)))


@st.composite
def lying_lengths(draw: Any) -> Sent:
    """A body that is longer or shorter than its Content-Length, or has two of them."""
    kind, raw = draw(st.sampled_from(PICTURES))
    length = draw(
        st.sampled_from((b"0", b"1", b"%d" % (len(raw) // 2), b"-1", b"x", b"9" * 30, b"1, 2"))
    )
    headers = {b"Content-Type": kind, b"Content-Length": length}
    if draw(st.booleans()):
        headers[b"Transfer-Encoding"] = draw(st.sampled_from((b"chunked", b"gzip", b"\x0bchunked")))
    return "lying length", request(b"POST", b"/predict", headers, raw)


@st.composite
def odd_queries(draw: Any) -> Sent:
    """Numbers that are none, names that are none, and parameters that don't exist."""
    number = st.sampled_from(("nan", "inf", "-inf", "1e999", "-1", "0", "1e-300", "", "ten"))
    text = st.text(max_size=30)
    query = {
        "deadline_ms": draw(number),
        draw(
            st.sampled_from(("deployment", "model", "include", "part_id", "cursor", "limit"))
        ): draw(st.one_of(text, number)),
        draw(text): draw(text),
    }
    spelled = "&".join(
        f"{quote(name, errors='replace')}={quote(value, errors='replace')}"
        for name, value in query.items()
    )
    target = draw(st.sampled_from(("/predict", "/datasets", "/jobs", "/models", "/ledger/entries")))
    method = b"POST" if target == "/predict" else b"GET"
    sent = request(
        method, f"{target}?{spelled}".encode(), {b"Content-Type": b"image/png"}, PICTURES[0][1]
    )
    return "odd query", sent


@st.composite
def odd_paths(draw: Any) -> Sent:
    """Ways out of a folder, bytes that are no text, and methods that don't exist."""
    step = st.sampled_from(
        (
            *(b"..", b"%2e%2e", b"%2f", b"%00", b"%ff", b"%c0%af", b"etc", b"passwd", b"", b"."),
            *(b"models", b"datasets", b"jobs", b"weights", b"bundle", b"report", b"mdl_a", b"v2"),
            *(b"%", b"%zz", b"*", b"a" * 3000, b"\xff\xfe", b";", b"ver_1", b"\\..\\.."),
        )
    )
    path = b"/" + b"/".join(draw(st.lists(step, max_size=6)))
    method = draw(st.sampled_from((b"GET", b"POST", b"PUT", b"DELETE", b"TRACE", b"BREW", b"HEAD")))
    return "odd path", request(method, path)


@st.composite
def odd_bodies(draw: Any) -> Sent:
    """JSON that is deep, broken, huge, no text, or holds fields that nobody knows."""
    body = draw(
        st.one_of(
            st.integers(1, 50_000).map(lambda depth: b"[" * depth),
            st.integers(1, 5_000).map(lambda depth: b'{"a":' * depth + b"1" + b"}" * depth),
            st.sampled_from(
                (
                    *(b"NaN", b'{"name": NaN}', b'{"name": "\\ud800"}', b'{"name": "\xff"}'),
                    *(b'{"model": "\\u0000"}', b'{"version": ' + b"9" * 6000 + b"}", b'"'),
                    *(b'{"name": "a", "task": "segmentation", "classes": ["\\udfff"]}', b"null"),
                    *(b'{"model": "mdl_a", "surprise": 1}', b'{"budget": {"max_steps": 1e400}}'),
                    *(b'{"split": {"group_pattern": "(a+)+$"}}', b'{"split": {"seed": -1e308}}'),
                )
            ),
            st.binary(max_size=60),
        )
    )
    target = draw(
        st.sampled_from(
            (
                *(b"/datasets", b"/jobs", b"/comparisons", b"/datasets/ds_a/versions"),
                *(b"/v2/models/default/infer", b"/predict"),
            )
        )
    )
    kinds = (b"application/json", b"application/json; charset=utf-16", b"text/html", b"\xe9")
    return "odd body", request(
        b"POST", target, {b"Content-Type": draw(st.sampled_from(kinds))}, body
    )


@st.composite
def odd_heads(draw: Any) -> Sent:
    """Heads that are huge, that have thousands of lines, or that are no HTTP."""
    return "odd head", draw(
        st.one_of(
            st.integers(1, 200_000).map(
                lambda size: request(b"GET", b"/healthz", {b"X-Long": b"a" * size})
            ),
            st.integers(1, 3_000).map(
                lambda count: request(
                    b"GET", b"/healthz", {b"X-%d" % number: b"1" for number in range(count)}
                )
            ),
            st.integers(1, 100_000).map(lambda size: request(b"GET", b"/" + b"a" * size)),
            st.binary(min_size=1, max_size=200).map(lambda noise: noise + b"\r\n\r\n"),
            st.binary(max_size=60).map(
                lambda noise: request(
                    b"GET", b"/healthz", {b"Range": zlib.compress(noise).hex().encode()}
                )
            ),
        )
    )


def hostile() -> SearchStrategy[Sent]:
    """Any of the requests above, with a word for its kind."""
    return st.one_of(
        damaged_pictures(),
        damaged_forms(),
        lying_buffers(),
        lying_lengths(),
        odd_queries(),
        odd_paths(),
        odd_bodies(),
        odd_heads(),
    )
