"""What an interrupted upload promises, what was seen of it, and the page that tells."""

from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.data.killed_service import ImportRead
from service.client.archive_upload import PIECE_BYTES

PAGE = Path("docs/benchmarks/data-interrupted-upload.md")
KILLS = 5
# Beyond the size of a piece, and of what the interpreter keeps of freed memory.
RSS_GROWTH_BOUND = 64 * 1024**2
# What a process reads beside the archive: code that it loads late, rows, answers.
BESIDE_BOUND = PIECE_BYTES
# Request and answer headers of a piece, a question, or an attempt while the server is away.
_REQUEST_BYTES = 1024
_ATTEMPTS_A_KILL = 100
_MIB = 1024**2


@dataclass
class Outcome:
    """What was seen.

    Attributes:
        archive_bytes: Its size.
        frames: How many it holds.
        frame_bytes: Of each as it is packed.
        kills: Who was killed, in order.
        line_bytes: What clients sent until the import was queued, headers included.
        client_reads: What each client read from when it first sent a byte.
        server_reads: What each server read beyond what it received.
        upload_s: From the first byte to the import, starts of processes included.
        import_s: From there to the end of the import.
        rss_growth: Largest growth of resident memory, in bytes, by role.
        done_at_worker_kill: Files that the import's progress counted when the worker was killed.
        items_at_worker_kill: Frames that were rows then; None if the worker was too quick.
        second_worker: What the second worker counted as read.
        second_worker_read_bytes: What the system counted, less what a worker reads to start.
        items: Frames at the end.
        status: Of the import.
    """

    archive_bytes: int
    frames: int
    frame_bytes: int
    kills: list[str] = field(default_factory=list)
    line_bytes: int = 0
    client_reads: list[int] = field(default_factory=list)
    server_reads: list[int] = field(default_factory=list)
    upload_s: float = 0.0
    import_s: float = 0.0
    rss_growth: dict[str, int] = field(default_factory=dict)
    done_at_worker_kill: int | None = None
    items_at_worker_kill: int | None = None
    second_worker: ImportRead | None = None
    second_worker_read_bytes: int = 0
    items: int = 0
    status: str = ""

    @property
    def sent_again_bound(self) -> int:
        """Bytes that may go over the line beside the archive: a piece a kill, and headers."""
        requests = self.archive_bytes // PIECE_BYTES + 1 + _ATTEMPTS_A_KILL * (KILLS + 1)
        return KILLS * PIECE_BYTES + requests * _REQUEST_BYTES

    @property
    def client_reads_bound(self) -> int:
        """Bytes that clients may read: the archive, a piece a kill, and answers."""
        return self.archive_bytes + KILLS * PIECE_BYTES + len(self.client_reads) * BESIDE_BOUND

    def violations(self) -> list[str]:
        """Return what was promised and not kept."""
        promises = {
            "every kill took place": len(self.kills) == KILLS,
            "the import succeeded": self.status == "succeeded",
            "every frame is there once": self.items == self.frames,
            "no more than a piece a kill was sent again": self.line_bytes - self.archive_bytes
            <= self.sent_again_bound,
            "no more than a piece a kill was read again by clients": sum(self.client_reads)
            <= self.client_reads_bound,
            "no server read the archive back": max(self.server_reads, default=0) < BESIDE_BOUND,
            "no frame that was a row was read or decoded again": self._reads_no_row_again(),
            "the server's memory is flat": self.rss_growth.get("api", 0) < RSS_GROWTH_BOUND,
        }
        return [promise for promise, kept in promises.items() if not kept]

    def _reads_no_row_again(self) -> bool:
        if self.items_at_worker_kill is None or self.second_worker is None:
            return True
        left = self.frames - self.items_at_worker_kill
        return self.second_worker == ImportRead(left, left * self.frame_bytes, left)


def render(outcome: Outcome) -> str:
    """Return the table."""
    again = outcome.line_bytes - outcome.archive_bytes
    pieces = f"{KILLS} pieces of {PIECE_BYTES // _MIB} MiB, and headers"
    bound = f"{outcome.sent_again_bound:,} ({pieces})"
    reread = sum(outcome.client_reads) - outcome.archive_bytes
    reread_bound = outcome.client_reads_bound - outcome.archive_bytes
    frame_bytes = f"{outcome.frame_bytes:,} bytes"
    servers = ", ".join(f"{number:,}" for number in outcome.server_reads)
    rows = [
        ("archive", f"{outcome.archive_bytes:,} bytes, {outcome.frames} frames of {frame_bytes}"),
        ("killed (SIGKILL), in this order", ", ".join(outcome.kills)),
        ("sent by all clients together, headers included", f"{outcome.line_bytes:,} bytes"),
        ("of that, beside the archive itself", f"{again:,} bytes; bound {bound}"),
        (
            "read by all clients together, beside the archive once",
            f"{reread:,} bytes; bound {reread_bound:,}",
        ),
        (
            "read by each server beside what it received",
            f"{servers} bytes; bound {BESIDE_BOUND:,} each",
        ),
        (
            "largest growth of a server's resident memory",
            f"{outcome.rss_growth['api'] / _MIB:.1f} MiB; bound {RSS_GROWTH_BOUND // _MIB} MiB",
        ),
        (
            "largest growth of a worker's resident memory",
            f"{outcome.rss_growth['worker'] / _MIB:.1f} MiB",
        ),
        *_worker_rows(outcome),
        ("frames at the end", f"{outcome.items}; import {outcome.status}"),
        ("upload, starts of processes included", f"{outcome.upload_s:.0f} s"),
        ("import, start of the second worker included", f"{outcome.import_s:.0f} s"),
        ("promises broken", "; ".join(outcome.violations()) or "none"),
    ]
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def _worker_rows(outcome: Outcome) -> list[tuple[str, str]]:
    done, items = outcome.done_at_worker_kill, outcome.items_at_worker_kill
    second = outcome.second_worker
    if done is None or items is None or second is None:
        return [("import's worker killed", "no: the import had ended")]
    left = outcome.frames - items
    beside = outcome.second_worker_read_bytes - second.byte_count
    counted = f"{second.files} files of {second.byte_count:,} bytes"
    return [
        ("import's worker killed", f"with {items} frames taken in and {done} recorded as done"),
        ("left then", f"{left} frames of {left * outcome.frame_bytes:,} bytes"),
        ("read by the second worker from the archive, as it counts", counted),
        ("decoded by it, as it counts", f"{second.decoded_frames} frames"),
        (
            "read by it beside these, as the system counts (its start taken off)",
            f"{beside:,} bytes",
        ),
        ("frames read or decoded though they were rows", f"{second.files - left}"),
    ]


def page(outcome: Outcome, size: str, machine: str) -> str:
    """Return the page."""
    return _PAGE_TEXT.format(size=size, machine=machine, table=render(outcome))


_PAGE_TEXT = """# An upload that is killed again and again

```sh
python -m benchmarks.data interrupted-upload --bytes {size}
```

`hairline upload` sends an archive of noise (8-bit BMP frames of 2500x2000) to `hairline serve`
through a relay that counts what clients send. SIGKILL comes in the middle of a piece, to the client
and to all of the service's processes in turn; killed clients and services are started again. Then
the import's worker is killed. Resident memory is sampled from the moment a process is ready, of the
second worker from its first frame on. Times are those of one machine that does both ends, and of
its disk.

What *read* means here, each time as the running program is seen to do it:

- by a **client**: `rchar` of `/proc/PID/io`, from its first byte on the line to the last sample
  before its end, so without the code that it loads to start. A piece in flight at a kill is read
  again.
- by a **server**: the same from the moment it was ready to its kill or to the queued import, less
  what the relay had taken for it. What is left is code loaded late, rows, and the archive's
  directory. At a kill of either end the megabytes between the two never arrive, so a number may be
  below zero; reading the archive back would still stand out by its size. More closely it is held by
  `tests/unit/service/test_partial_uploads.py`, which has no network in between.
- by the **second worker**: files and bytes that the import itself counts as they come out of the
  archive, and frames that it counts as it decodes them; beside it `rchar` of that worker, less that
  of an idle one, which counts rows and directories too.

{machine}

{table}
"""
