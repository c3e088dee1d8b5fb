"""Uploading an archive: in pieces, through cut connections, going on where it was cut off.

The service is asked how much it has after every error and at every start, so nothing but the piece
in flight is read or sent twice.  Each piece goes with its digest, and the service keeps none that
arrives changed.  The archive goes by a name made of its own name, size and time of change: a file
that was changed is another upload, and one that changes while it is sent is given up before a
mixture of two can arrive.
"""

import base64
import hashlib
import itertools
import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple
from urllib.parse import quote

from service.client.transport import HairlineError, JsonObject, Transport
from service.datasets.resources import ImportResource

# Small enough that a cut connection costs little, large enough that requests cost nothing.
PIECE_BYTES = 8 * 1024**2
_CHUNK_BYTES = 256 * 1024
_FIRST_PAUSE_S = 0.25
_LONGEST_PAUSE_S = 10.0
# What a proxy in front of a service that restarts answers, and the service while it is not ready.
_PASSING_STATUSES = frozenset({408, 502, 503, 504})
_PASSING_CODES = frozenset({"upload_busy", "upload_offset", "content_digest_mismatch"})
# The service keeps the archive of an import that failed so; only the layout must be named.
_CURED_BY_A_LAYOUT = frozenset({"layout_ambiguous", "layout_mismatch"})
_MORE_TO_COME = 308

# Bytes that are there, and bytes of the whole archive.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ArchiveUpload:
    """An archive that is there whole.

    Attributes:
        queued: Its import, as it was when the last byte had arrived, or its layout was named.
        sent_bytes: What this call has sent; 0 if the archive was there already.
    """

    queued: ImportResource
    sent_bytes: int


class Patience:
    """Waits between attempts, longer and longer, and gives up after a time without progress.

    Args:
        seconds: How long without progress is borne.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.renew()

    def renew(self) -> None:
        """Note that there was progress."""
        self._deadline = time.monotonic() + self._seconds
        self._pause_s = _FIRST_PAUSE_S

    def wait(self, error: HairlineError) -> None:
        """Sleep a while, or raise the error if it will not pass by waiting."""
        passes = (
            error.status is None
            or error.status in _PASSING_STATUSES
            or error.code in _PASSING_CODES
        )
        if not passes or time.monotonic() + self._pause_s > self._deadline:
            raise error
        # Many clients that lost one service must not come back in step.
        time.sleep(self._pause_s * random.uniform(0.5, 1.0))  # noqa: S311 - no secret.
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)


class FileState(NamedTuple):
    """What tells a file from a changed one."""

    name: str
    byte_count: int
    mtime_ns: int


def file_state(file: Path) -> FileState:
    """Return a file's state now."""
    status = file.stat()
    return FileState(file.name, status.st_size, status.st_mtime_ns)


def upload_key(dataset_id: str, archive: FileState, attempt: int) -> str:
    """Return the Idempotency-Key of a file on its way into a data set."""
    identity = json.dumps([dataset_id, *archive])
    return f"archive-{hashlib.sha256(identity.encode()).hexdigest()[:40]}-{attempt}"


def send_archive(
    transport: Transport,
    dataset_path: str,
    dataset_id: str,
    archive: Path,
    *,
    progress: Progress | None,
    layout: str | None,
    patience_s: float,
) -> ArchiveUpload:
    """Send what the service lacks of an archive; see `HairlineClient.upload_archive`."""
    path = f"{dataset_path}/archive" + (f"?layout={quote(layout)}" if layout else "")
    for attempt in itertools.count(1):
        state = file_state(archive)
        key = upload_key(dataset_id, state, attempt)
        sender = _Sender(transport, path, archive, state, key, progress, patience_s)
        queued = ImportResource.model_validate(sender.run()["import"])
        if sender.sent_bytes:
            break
        # The answer is the one of that time; an import that failed since is tried under a new name.
        import_path = f"{dataset_path}/imports/{queued.id}"
        now = transport.call("GET", import_path)
        if now["status"] != "failed":
            break
        if now["error"] is not None and now["error"]["code"] in _CURED_BY_A_LAYOUT:
            if layout is None:
                # It would only fail again.
                break
            named = _name_layout(transport, import_path, layout)
            if named is not None:
                return ArchiveUpload(named, 0)
    return ArchiveUpload(queued, sender.sent_bytes)


def _name_layout(transport: Transport, import_path: str, layout: str) -> ImportResource | None:
    """Return the import, queued again in that layout, None if its archive is no longer there."""
    try:
        answer = transport.call("PUT", f"{import_path}/layout", json={"name": layout})
    except HairlineError as error:
        if error.code == "archive_gone":
            return None
        raise
    return ImportResource.model_validate(answer)


class _Sender:
    """Sends one archive under one key."""

    def __init__(
        self,
        transport: Transport,
        path: str,
        archive: Path,
        state: FileState,
        key: str,
        progress: Progress | None,
        patience_s: float,
    ) -> None:
        self._transport = transport
        self._path = path
        self._archive = archive
        self._progress = progress
        self._patience = Patience(patience_s)
        self._state = state
        self._key = key
        self._total = state.byte_count
        self._furthest = 0
        self.sent_bytes = 0

    def run(self) -> JsonObject:
        """Return the answer to the last byte."""
        received: int | None = None
        with self._archive.open("rb") as file:
            while True:
                try:
                    answer = self._ask() if received is None else self._send(file, received)
                except HairlineError as error:
                    self._patience.wait(error)
                    received = None
                    continue
                if "import" in answer:
                    self._show(self._total)
                    return answer
                received = int(answer["received"])
                if received > self._furthest:
                    self._furthest = received
                    self._patience.renew()
                self._show(received)

    def _ask(self) -> JsonObject:
        return self._put({"Content-Range": f"bytes */{self._total}"}, b"")

    def _send(self, file: BinaryIO, start: int) -> JsonObject:
        stop = min(start + PIECE_BYTES, self._total)
        file.seek(start)
        piece = file.read(stop - start)
        if len(piece) < stop - start or file_state(self._archive) != self._state:
            raise OSError(f"{self._archive} was changed while it was sent; send it again")
        encoded = base64.b64encode(hashlib.sha256(piece).digest()).decode()
        headers = {
            "Content-Range": f"bytes {start}-{stop - 1}/{self._total}",
            "Content-Length": str(len(piece)),
            "Content-Digest": f"sha-256=:{encoded}:",
        }
        self.sent_bytes += len(piece)
        return self._put(headers, self._chunks(piece, start))

    def _put(self, headers: dict[str, str], content: bytes | Iterator[bytes]) -> JsonObject:
        answer = self._transport.call(
            "PUT",
            self._path,
            accepted=(_MORE_TO_COME,),
            content=content,
            headers={"Idempotency-Key": self._key, **headers},
        )
        if not answer.keys() & {"import", "received"}:
            problem = {
                "code": "no_hairline",
                "detail": "the service answers an archive's piece as no Hairline does",
                "hint": "is the address right?",
            }
            raise HairlineError(_MORE_TO_COME, problem)
        return answer

    def _chunks(self, piece: bytes, start: int) -> Iterator[bytes]:
        for offset in range(0, len(piece), _CHUNK_BYTES):
            yield piece[offset : offset + _CHUNK_BYTES]
            self._show(start + offset)

    def _show(self, received: int) -> None:
        if self._progress is not None:
            self._progress(received, self._total)
