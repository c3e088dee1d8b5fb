"""Work that nobody waits for: bounded, in order, in a thread of its own."""

import contextlib
import logging
import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")

_TICK_S = 1.0


class BackgroundQueue(Generic[T]):
    """Hands items to a function, one after the other; an item that finds no place is refused.

    Args:
        name: Of the thread.
        places: Items that may wait.
        handle: Does the work; what it raises is logged, and the next item is taken.
        tick: Called about once a second and after each item, for what has to be done in time.

    Side effects: the first item starts a thread; `close` ends it.
    """

    def __init__(
        self,
        name: str,
        places: int,
        handle: Callable[[T], None],
        tick: Callable[[], None] | None = None,
    ) -> None:
        self._name = name
        self._handle = handle
        self._tick = tick
        # None wakes the thread to see that the queue is being closed.
        self._items: queue.Queue[T | None] = queue.Queue(places)
        self._guard = threading.Lock()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def offer(self, item: T) -> bool:
        """Take an item and return at once; False if there is no place for it."""
        if self._closing.is_set():
            return False
        try:
            self._items.put_nowait(item)
        except queue.Full:
            return False
        with self._guard:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
                self._thread.start()
        return True

    def wait(self) -> None:
        """Wait until everything that was taken has been handled."""
        self._items.join()

    def close(self) -> None:
        """End after the item in hand; those that wait are dropped."""
        self._closing.set()
        with contextlib.suppress(queue.Full):
            self._items.put_nowait(None)
        if self._thread is not None:
            self._thread.join()
            self._ticked()

    def _work(self) -> None:
        while not self._closing.is_set():
            try:
                item = self._items.get(timeout=_TICK_S)
            except queue.Empty:
                self._ticked()
                continue
            try:
                if item is not None:
                    self._handle(item)
            except Exception:
                logger.exception("%s: an item was given up", self._name)
            # Before it counts as handled: whoever waits for it sees all of it.
            self._ticked()
            self._items.task_done()

    def _ticked(self) -> None:
        if self._tick is None:
            return
        try:
            self._tick()
        except Exception:
            logger.exception("%s: housekeeping failed", self._name)
