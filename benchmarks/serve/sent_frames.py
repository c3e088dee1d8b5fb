"""Frames as a line sends them: picture files and a camera's buffers."""

import select
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.client import HTTPConnection
from types import MappingProxyType
from typing import Any
from urllib.parse import urlencode, urlsplit

import cv2
import numpy as np
from numpy.typing import NDArray

from data import decode_image
from data.camera_buffers import BufferLayout, decode_buffer
from data.images import Pixels

# The quality that cameras and their tools write by default.
_JPEG_QUALITY = 95
_BOUNDARY = "hairline-frame-boundary"
_TIMEOUT_S = 300.0


@dataclass(frozen=True)
class SentFrame:
    """One frame's bytes and headers.

    Attributes:
        encoding: ``JPEG``, ``PNG``, ``Mono8`` or ``RGB8``; the last two are buffers.
        raw: The file or the buffer.
        content_type: Of the body.
        headers: Of a buffer's layout.
        is_form: Whether it is sent as the part ``file`` of a form.
    """

    encoding: str
    raw: bytes
    content_type: str
    headers: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    is_form: bool = False

    @property
    def body(self) -> bytes:
        """What is sent."""
        if not self.is_form:
            return self.raw
        head = (
            f"--{_BOUNDARY}\r\n"
            'Content-Disposition: form-data; name="file"; filename="frame"\r\n'
            f"Content-Type: {self.content_type}\r\n\r\n"
        )
        return head.encode() + self.raw + f"\r\n--{_BOUNDARY}--\r\n".encode()

    @property
    def request_headers(self) -> dict[str, str]:
        """What is sent before it."""
        form = f"multipart/form-data; boundary={_BOUNDARY}"
        return {"Content-Type": form if self.is_form else self.content_type, **self.headers}

    def pixels(self) -> Pixels:
        """Return what a model sees of it."""
        if not self.headers:
            return decode_image(self.raw, name=self.encoding).pixels
        layout = BufferLayout(
            int(self.headers["X-Width"]), int(self.headers["X-Height"]), self.encoding
        )
        return decode_buffer(self.raw, layout, bayer=None).pixels


def as_sent(pixels: NDArray[np.uint8], encoding: str, *, is_form: bool = False) -> SentFrame:
    """Return a frame (H, W) or, in RGB, (H, W, 3), encoded as ``encoding`` says."""
    if encoding in ("JPEG", "PNG"):
        options = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY] if encoding == "JPEG" else []
        stored = pixels if pixels.ndim == 2 else pixels[:, :, ::-1]
        done, encoded = cv2.imencode(f".{encoding.lower()}", stored, options)
        assert done
        return SentFrame(encoding, bytes(encoded), f"image/{encoding.lower()}", is_form=is_form)
    height, width = pixels.shape[:2]
    layout = {"X-Width": str(width), "X-Height": str(height), "X-Pixel-Format": encoding}
    return SentFrame(encoding, pixels.tobytes(), "application/octet-stream", layout)


@dataclass(frozen=True)
class Received:
    """What came back and when, on the client's monotonic clock."""

    status: int
    raw: bytes
    asked_s: float
    answered_s: float
    retry_after: str | None = None

    @property
    def total_ms(self) -> float:
        """From the first byte sent to the last one received."""
        return 1000 * (self.answered_s - self.asked_s)


class LineClient:
    """One connection that is kept open, as a line's program keeps one; not for several threads.

    Args:
        url: The service's.
    """

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        assert address.hostname is not None
        self._connection = HTTPConnection(address.hostname, address.port, timeout=_TIMEOUT_S)
        self._connection.connect()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _reopen_if_closed(self) -> None:
        """Open the connection again if the other end has closed it, as servers do when idle."""
        if select.select([self._connection.sock], [], [], 0)[0]:
            self._connection.close()
            self._connection.connect()

    def ask(self, path: str, frame: SentFrame, **query: Any) -> Received:
        """Send a frame and return what came back, whatever its status.

        Raises:
            OSError: The connection broke, or there was no answer for minutes.
            http.client.HTTPException: What came back is no HTTP.
        """
        # Built before the clock starts: the encoding of a form is not the service's doing.
        body, headers = frame.body, frame.request_headers
        self._reopen_if_closed()
        target = f"{path}?{urlencode(query)}" if query else path
        asked_s = time.perf_counter()
        self._connection.request("POST", target, body, headers)
        with self._connection.getresponse() as response:
            raw = response.read()
        answered_s = time.perf_counter()
        retry_after = response.headers.get("Retry-After")
        return Received(response.status, raw, asked_s, answered_s, retry_after)
