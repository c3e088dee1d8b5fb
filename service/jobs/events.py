"""Reading what a training run says about itself: ``events.jsonl`` in its directory."""

import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

EVENTS_FILE = "events.jsonl"
TERMINAL_KINDS = frozenset({"finished", "failed", "cancelled"})


@dataclass(frozen=True)
class Event:
    """One line of ``events.jsonl``; ``data`` is the whole object."""

    seq: int
    kind: str
    data: dict[str, Any]

    @property
    def text(self) -> str:
        """The event as JSON on one line."""
        return json.dumps(self.data, separators=(",", ":"))


def parse_event(line: bytes) -> Event:
    """Parse one complete line.

    Raises:
        ValueError: The line is not a JSON object with an integer ``seq`` and a text ``kind``.
    """
    data = json.loads(line)
    if not isinstance(data, dict):
        raise ValueError(f"an event is an object, not {type(data).__name__}")  # noqa: TRY004 - one error type for every malformed line.
    seq, kind = data.get("seq"), data.get("kind")
    if not isinstance(seq, int) or not isinstance(kind, str):
        raise ValueError(f"seq is {seq!r} and kind is {kind!r}")  # noqa: TRY004 - likewise.
    return Event(seq, kind, data)


class EventReader:
    """Reads a growing event file piece by piece, never the same line twice.

    An incomplete last line stays unread: either its writer is still at it, or its writer died and
    the run's next start truncates it.  The offset therefore never lies beyond such a truncation.
    """

    # One read of the backlog of a long run stays below this; the rest comes with the next call.
    _CHUNK_BYTES = 4 * 1024 * 1024

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / EVENTS_FILE
        self._offset = 0

    def read(self) -> list[Event]:
        """Return the events that were completed since the last call, oldest first.

        A complete line that is no event (a power cut may leave NUL bytes) is logged and skipped: a
        damaged progress line must not cost a training run.
        """
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                chunk = file.read(self._CHUNK_BYTES)
        except FileNotFoundError:
            return []
        complete = chunk[: chunk.rfind(b"\n") + 1]
        events = []
        for line in complete.split(b"\n")[:-1]:
            try:
                events.append(parse_event(line))
            except ValueError as error:
                logger.warning("%s: byte %d: %s; skipped", self._path, self._offset, error)
            self._offset += len(line) + 1
        return events

    def read_all(self) -> list[Event]:
        """Return every event that is complete now and was not read yet."""
        events: list[Event] = []
        before = -1
        while self._offset != before:
            before = self._offset
            events += self.read()
        return events


@dataclass(frozen=True)
class RunView:
    """What the events so far say about a run; folding the whole file again gives the same view.

    Attributes:
        last_seq: The newest event's ``seq``; 0 before the first.
        last_checkpoint_seq: The ``seq`` of the newest checkpoint, or step down to less memory; 0
            before the first.
        pid: The process that wrote the newest ``started``.
        stage: The newest stage, if any.
        stage_seq: Its event's ``seq``; 0 before the first.
        terminal: The newest terminal event since the newest ``started``.
    """

    last_seq: int = 0
    last_checkpoint_seq: int = 0
    pid: int | None = None
    stage: str | None = None
    stage_seq: int = 0
    progress: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[dict[str, Any], ...] = ()
    terminal: Event | None = None


_PROGRESS_FIELDS = ("step", "steps_total", "epoch", "epochs_total", "eta_s")


def _progress(data: dict[str, Any]) -> dict[str, Any]:
    """Return the progress fields with the done ``fraction`` of the steps, where it is known."""
    progress = {name: data.get(name) for name in _PROGRESS_FIELDS}
    step, total = progress["step"], progress["steps_total"]
    progress["fraction"] = min(step / total, 1.0) if step is not None and total else None
    return progress


def _fold_one(view: RunView, event: Event) -> RunView:
    data = event.data
    match event.kind:
        case "started":
            return replace(view, pid=data.get("pid"), terminal=None)
        case "stage":
            return replace(view, stage=data.get("stage"), stage_seq=event.seq)
        case "progress":
            return replace(view, progress=_progress(data))
        case "metrics":
            # A loss arrives every few steps and a validation score every epoch: the latest value of
            # each name is what a person wants to see, not the latest event.
            values = {**view.metrics.get("values", {}), **data.get("values", {})}
            place = {"step": data.get("step"), "epoch": data.get("epoch")}
            return replace(view, metrics={**place, "values": values})
        case "warning":
            warning = {"code": data.get("code"), "detail": data.get("detail")}
            # A resumed run repeats its warnings; once is enough for the reader.
            known = warning in view.warnings
            return view if known else replace(view, warnings=(*view.warnings, warning))
        # A run that stepped down to less memory has done something about its last death, and the
        # ladder ends: such an attempt was not fruitless.
        case "checkpoint" | "memory_step_down":
            return replace(view, last_checkpoint_seq=event.seq)
        case kind if kind in TERMINAL_KINDS:
            return replace(view, terminal=event)
        case _:
            return view


def fold(view: RunView, events: Iterable[Event]) -> RunView:
    """Return the view after ``events``."""
    for event in events:
        view = replace(_fold_one(view, event), last_seq=event.seq)
    return view
