"""Loading ahead in threads: results in the order of their keys, a bound on how many wait.

Decoding, OpenCV and NumPy release Python's global lock, so threads decode in parallel and hand
over their frames without a copy (docs/decisions/0014-frames-are-loaded-by-threads.md).
"""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Key = TypeVar("Key")
Loaded = TypeVar("Loaded")

# What waits for the network may take this much memory; a frame is then a fraction of a second old.
MOST_WAITING_BYTES = 2 * 1024**3
MOST_WORKERS = 8


def default_workers() -> int:
    """Return half of the cores this process may use, at least 1 and at most `MOST_WORKERS`."""
    return max(1, min(MOST_WORKERS, len(os.sched_getaffinity(0)) // 2))


def batches_ahead(workers: int, batch_bytes: int) -> int:
    """Return how many batches may be loaded or wait at once.

    Two a worker keep each busy while the network takes one; memory may allow fewer, and one is
    always allowed.

    Args:
        workers: Threads.
        batch_bytes: Memory of one batch.
    """
    return max(1, min(2 * workers, MOST_WAITING_BYTES // max(batch_bytes, 1)))


def prefetch(
    load: Callable[[Key], Loaded], keys: Iterable[Key], *, workers: int, ahead: int
) -> Generator[Loaded]:
    """Yield ``load(key)`` for each key, in order, while threads work on the following ones.

    An error is raised where its result would have been yielded, as ``load`` raised it and with a
    note that names the key; what was loaded ahead is dropped.  Closing the iterator waits for the
    loads under way and starts no other.

    Args:
        load: Called from several threads at once.
        keys: Read as far as they are needed.
        workers: Threads; 0 loads in the calling one, when asked.
        ahead: At most this many results are under way or wait to be taken.
    """
    if workers == 0:
        for key in keys:
            yield _load_noted(load, key)
        return
    remaining = iter(keys)
    executor = ThreadPoolExecutor(min(workers, ahead), thread_name_prefix="loader")
    try:
        waiting: deque[Future[Loaded]] = deque(
            executor.submit(_load_noted, load, key) for key in islice(remaining, ahead)
        )
        while waiting:
            loaded = waiting.popleft().result()
            for key in islice(remaining, 1):
                waiting.append(executor.submit(_load_noted, load, key))
            yield loaded
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _load_noted(load: Callable[[Key], Loaded], key: Key) -> Loaded:
    try:
        return load(key)
    except Exception as error:
        error.add_note(f"while loading {key}")
        raise
