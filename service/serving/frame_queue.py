"""Frames that wait for the device: a bounded queue that knows their deadlines.

Three rules, each on what the clock and the last frames say:

- A frame is given up once its deadline has passed, and as soon as it can't be met any more even if
  nothing but the device's current work came before it, by the quickest of the last frames of its
  model and size.
- A frame that finds the device free is always tried, however slow the last ones were: a machine
  that was busy for a minute would otherwise be taken for slow for ever.
- Waiting frames of one model, size and depth go together, as far as memory and each one's deadline
  allow.
"""

import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from models import BundleInfo, Inspection, Pixels
from service.errors import NotReady, TooManyRequests

# Each frame that waits holds its pixels, up to 600 MB at the pixel limit.
PLACES = 16
# A sender of more than this leaves no room for others, who would be refused for its sake.
PLACES_PER_CLIENT = 12
MAX_BATCH = 8
# Activations grow with the area: a batch takes no more memory than one frame of the size that the
# service is made for.
MAX_BATCH_AREA_PX = 2500 * 2000
# The quickest of so many decides what a frame takes at the least.
_REMEMBERED_DURATIONS = 8
# Models times frame sizes in use at a time.
_REMEMBERED_KINDS = 64
# Nothing is known yet of what a frame takes.
_UNKNOWN_S = 0.0

Clock = Callable[[], float]
FrameKind = tuple[str, tuple[int, ...], str]


class NotInspected(TimeoutError):  # noqa: N818 - the name says what is the case.
    """A frame was given up; the message says why."""


@dataclass(frozen=True)
class Inspected:
    """What became of a frame on the device.

    Attributes:
        info: The model that looked at it.
        inspection: What it said.
        queue_s: How long the frame had waited for the device.
    """

    info: BundleInfo
    inspection: Inspection
    queue_s: float


@dataclass(eq=False)
class WaitingFrame:
    """A frame's place in the queue, from before it is decoded until it is answered.

    Attributes:
        model_id: Who is asked.
        client: Who asks.
        deadline_s: On the queue's clock; None for a frame that may take what it takes.
        outcome: Cancelled by whoever no longer wants it; the device then never sees the frame.
    """

    model_id: str
    client: str
    deadline_s: float | None
    outcome: "Future[Inspected]" = field(default_factory=Future)
    pixels: Pixels | None = None
    put_at_s: float = 0.0

    @property
    def kind(self) -> FrameKind:
        """What frames must have in common to take as long and to go together."""
        assert self.pixels is not None  # Only frames that were put have one.
        return self.model_id, self.pixels.shape, self.pixels.dtype.name

    @property
    def area_px(self) -> int:
        """The frame's number of pixels."""
        assert self.pixels is not None
        height, width = self.pixels.shape[:2]
        return int(height * width)


class FrameQueue:
    """Places for frames; any thread puts frames in, one takes them out.

    Args:
        places: Frames that wait or are on the device.
        places_per_client: Of them, for one sender.
        clock: In seconds; deadlines are told on it.
    """

    def __init__(
        self,
        places: int = PLACES,
        places_per_client: int = PLACES_PER_CLIENT,
        clock: Clock = time.perf_counter,
    ) -> None:
        self._places = places
        self._places_per_client = places_per_client
        self._clock = clock
        self._changed = threading.Condition()
        self._holders: set[WaitingFrame] = set()
        self._waiting: deque[WaitingFrame] = deque()
        self._durations = _Durations()
        # When the device is expected to be done with what it is at; None while it is free.
        self._busy_until_s: float | None = None
        self._is_closed = False

    def __len__(self) -> int:
        """Return how many places are taken."""
        return len(self._holders)

    def admit(
        self, model_id: str, client: str, deadline_s: float | None, count: int = 1
    ) -> list[WaitingFrame]:
        """Take places for frames before they are decoded: all of them or none.

        Raises:
            TooManyRequests: This client holds its share already.
            NotReady: All places are taken, or the queue is closed.
        """
        with self._changed:
            if self._is_closed:
                raise NotReady("inference_stopping", "the service is being stopped")
            held = Counter(frame.client for frame in self._holders)[client]
            if held + count > self._places_per_client:
                raise TooManyRequests(
                    "client_busy",
                    f"{held} frames of this client are waiting already, of at most "
                    f"{self._places_per_client}",
                    hint="wait for answers before sending more; the other places are for others",
                    retry_after_s=self._time_for_a_place_s(),
                )
            if len(self._holders) + count > self._places:
                raise NotReady(
                    "inference_busy",
                    f"{len(self._holders)} frames are waiting already, of at most {self._places}",
                    hint="send frames no faster than the model answers, or add a machine",
                    retry_after_s=self._time_for_a_place_s(),
                )
            frames = [WaitingFrame(model_id, client, deadline_s) for _ in range(count)]
            self._holders.update(frames)
            return frames

    def put(self, frame: WaitingFrame, pixels: Pixels) -> None:
        """Let a decoded frame wait for the device, or give it up if that is hopeless."""
        with self._changed:
            if frame not in self._holders or frame.outcome.cancelled():
                return
            frame.pixels, frame.put_at_s = pixels, self._clock()
            if self._busy_until_s is not None:
                begin_s = max(frame.put_at_s, self._busy_until_s)
                if not self._can_be_met(frame, begin_s):
                    self._give_up(frame)
                    return
            self._waiting.append(frame)
            self._changed.notify()

    def leave(self, frame: WaitingFrame) -> None:
        """Free a frame's place; one that still waits is not inspected.  May be called again."""
        with self._changed:
            self._holders.discard(frame)
            frame.outcome.cancel()
            if frame in self._waiting:
                self._waiting.remove(frame)

    def take(self) -> list[WaitingFrame]:
        """Wait for frames and return those to show to the device together; none at the end."""
        with self._changed:
            self._busy_until_s = None
            while True:
                if self._is_closed:
                    return []
                batch = self._next_batch()
                if batch:
                    now = self._clock()
                    self._busy_until_s = now + self._durations.of(batch[0].kind) * len(batch)
                    return batch
                if not self._waiting:
                    self._changed.wait()

    def record_duration(self, kind: FrameKind, duration_s: float) -> None:
        """Note what one frame has taken on the device."""
        with self._changed:
            self._durations.add(kind, duration_s)

    def close(self) -> None:
        """Let the taker leave, and give up all that waits."""
        with self._changed:
            self._is_closed = True
            for frame in self._waiting:
                frame.outcome.cancel()
            self._waiting.clear()
            self._changed.notify_all()

    def _next_batch(self) -> list[WaitingFrame]:
        now = self._clock()
        for frame in [frame for frame in self._waiting if _has_passed(frame, now)]:
            self._waiting.remove(frame)
            self._give_up(frame)
        hopeful = [frame for frame in self._waiting if self._can_be_met(frame, now)]
        if hopeful:
            for frame in [frame for frame in self._waiting if frame not in hopeful]:
                self._waiting.remove(frame)
                self._give_up(frame)
        if not self._waiting:
            return []
        # If none can be met the device is free all the same, so the first one is tried.
        batch = self._companions(hopeful or [self._waiting[0]], now)
        for frame in batch:
            self._waiting.remove(frame)
        # A frame that was cancelled in this moment leaves the batch here.
        return [frame for frame in batch if frame.outcome.set_running_or_notify_cancel()]

    def _companions(self, frames: list[WaitingFrame], now: float) -> list[WaitingFrame]:
        """Return the first frame and those of its kind that may go with it."""
        first, *others = frames
        each_s = self._durations.of(first.kind)
        batch = [first]
        for frame in others:
            size = len(batch) + 1
            if size > largest_batch(first.area_px):
                break
            if frame.kind != first.kind:
                continue
            # All of a batch are done when the last one is.
            end_s = now + size * each_s
            if any(_has_passed(member, end_s) for member in (*batch, frame)):
                continue
            batch.append(frame)
        return batch

    def _can_be_met(self, frame: WaitingFrame, begin_s: float) -> bool:
        return not _has_passed(frame, begin_s + self._durations.of(frame.kind))

    def _give_up(self, frame: WaitingFrame) -> None:
        if frame.outcome.set_running_or_notify_cancel():
            frame.outcome.set_exception(NotInspected(self._why(frame)))

    def _why(self, frame: WaitingFrame) -> str:
        if _has_passed(frame, self._clock()):
            return "the deadline passed before the frame was inspected"
        least_ms = 1000 * self._durations.of(frame.kind)
        return (
            "the deadline could not be met: other frames came first, and the model takes "
            f"{least_ms:.0f} ms or more for a frame of this size"
        )

    def _time_for_a_place_s(self) -> float:
        known = [self._durations.of(f.kind) for f in self._holders if f.pixels is not None]
        return max(known, default=1.0)


class _Durations:
    """What the last frames of each kind took."""

    def __init__(self) -> None:
        self._by_kind: OrderedDict[FrameKind, deque[float]] = OrderedDict()

    def add(self, kind: FrameKind, duration_s: float) -> None:
        """Note one more."""
        latest = self._by_kind.setdefault(kind, deque(maxlen=_REMEMBERED_DURATIONS))
        latest.append(duration_s)
        self._by_kind.move_to_end(kind)
        if len(self._by_kind) > _REMEMBERED_KINDS:
            self._by_kind.popitem(last=False)

    def of(self, kind: FrameKind) -> float:
        """Return the least that such a frame takes, as far as is known."""
        return min(self._by_kind.get(kind, ()), default=_UNKNOWN_S)


def largest_batch(area_px: int) -> int:
    """Return how many frames of an area go through the network together at the most."""
    return max(1, min(MAX_BATCH, MAX_BATCH_AREA_PX // area_px))


def _has_passed(frame: WaitingFrame, at_s: float) -> bool:
    return frame.deadline_s is not None and at_s > frame.deadline_s
