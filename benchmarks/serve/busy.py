"""What a thread of the API that computes in Python costs the answers made beside it.

A verdict is made in dozens of short calls of libraries.  Each lets other threads run, and then
waits for the one that does to hand the interpreter over: by Python's default after 5 ms.  The
defects of a frame are found alone and beside such a thread, at both intervals, in turns.
"""

import argparse
import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.quartiles import quartiles
from benchmarks.results_page import spread
from benchmarks.serve.page import PAGE
from models import ClassThreshold, OperatingPoint, find_defects
from service.process import SWITCH_INTERVAL_S

DEFAULT_S = 0.005
_CLASSES = ("scratch", "pit", "stain")
_POINT = OperatingPoint(classes={name: ClassThreshold(min_area_px=4) for name in _CLASSES})
_ROUNDS = 15


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's arguments."""
    PAGE.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure and write the page; return the exit status."""
    return PAGE.record("busy", arguments, measure_busy)


def measure_busy(quick: bool) -> dict[str, Any]:
    """Return the section of one run.

    Side effects: the interpreter's switch interval is put back at the end.
    """
    height, width = (200, 250) if quick else (2000, 2500)
    probabilities = drawn_probabilities(height, width)
    found = len(find_defects(probabilities, _CLASSES, _POINT)[0])
    before_s = sys.getswitchinterval()
    times: dict[tuple[float, bool], list[float]] = {}
    try:
        for _ in range(2 if quick else _ROUNDS):
            for interval_s in (DEFAULT_S, SWITCH_INTERVAL_S):
                sys.setswitchinterval(interval_s)
                for is_beside in (False, True):
                    with busy_thread() if is_beside else contextlib.nullcontext():
                        taken_ms = _time_ms(probabilities)
                    times.setdefault((interval_s, is_beside), []).append(taken_ms)
    finally:
        sys.setswitchinterval(before_s)
    return {"times_ms": {str(key): each for key, each in times.items()}, **_section(times, found)}


@contextlib.contextmanager
def busy_thread() -> Iterator[None]:
    """Compute in a thread that never waits, within the block."""
    is_over = threading.Event()

    def compute() -> None:
        while not is_over.is_set():
            sum(number * number for number in range(1000))

    thread = threading.Thread(target=compute)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def drawn_probabilities(height: int, width: int) -> NDArray[np.float32]:
    """Return (3, height, width) probabilities with a dozen defects of each class."""
    generator = np.random.default_rng(0)
    drawn = np.zeros((len(_CLASSES), height, width), np.float32)
    for plane in drawn:
        for _ in range(12):
            top, left = generator.integers(0, (height - 20, width - 20))
            plane[top : top + 12, left : left + 15] = generator.uniform(0.6, 1.0)
    return drawn


def _time_ms(probabilities: NDArray[np.float32]) -> float:
    begin_s = time.perf_counter()
    find_defects(probabilities, _CLASSES, _POINT)
    return 1000 * (time.perf_counter() - begin_s)


def _section(times: dict[tuple[float, bool], list[float]], found: int) -> dict[str, Any]:
    """Return the notes and the table."""
    rows = []
    for interval_s in (DEFAULT_S, SWITCH_INTERVAL_S):
        alone, beside = times[interval_s, False], times[interval_s, True]
        ratios = [busy / free for busy, free in zip(beside, alone, strict=True)]
        rows.append(
            [
                f"{1000 * interval_s:g} ms",
                f"{median(alone):.1f}",
                spread(quartiles(beside), ".1f"),
                spread(quartiles(ratios), ".1f"),
            ]
        )
    note = (
        f"Finding {found} defects of a frame, by the interpreter's switch interval: Python's "
        "default, and the one that the API sets; milliseconds, medians, quartiles in brackets."
    )
    return {
        "notes": [note],
        "columns": ["switch interval", "alone", "beside a busy thread", "beside / alone"],
        "rows": rows,
    }
