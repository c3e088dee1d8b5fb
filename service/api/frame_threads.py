"""Threads of ``/predict`` alone: what other calls keep busy delays no verdict."""

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

# Decoding and drawing take a core each; two also where there is one, so that a huge frame does not
# stand in the way of a small one.
_PICTURE_THREADS = max(2, os.cpu_count() or 1)
# Reading rows, writing the ledger and spelling answers take milliseconds.
_ANSWER_THREADS = 4


class FrameThreads:
    """Two bounded sets of threads: one for pictures, and one for what every answer needs.

    Work that has not begun when its request is cancelled never begins; work under way keeps its
    thread to its end, so that no flood of requests makes more threads than these.

    Side effects: starts threads as they are needed; `close` ends them.
    """

    def __init__(self) -> None:
        self._pictures = ThreadPoolExecutor(_PICTURE_THREADS, "pictures")
        self._answers = ThreadPoolExecutor(_ANSWER_THREADS, "answers")

    async def picture(self, work: Callable[[], T]) -> T:
        """Decode or draw, beside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._pictures, work)

    async def answer(self, work: Callable[[], T]) -> T:
        """Do what every answer needs, which never waits for a picture."""
        return await asyncio.get_running_loop().run_in_executor(self._answers, work)

    def close(self) -> None:
        """Finish what is under way."""
        self._pictures.shutdown(cancel_futures=True)
        self._answers.shutdown(cancel_futures=True)
