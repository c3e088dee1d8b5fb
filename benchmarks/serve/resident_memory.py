"""Resident memory of processes over time, and whether it grows."""

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import psutil
from scipy import stats

_MIB = 1024**2
_EVERY_S = 1.0
# What no line's box would notice in a shift, and what minutes of samples can still tell from noise.
BOUND_MIB_A_MINUTE = 1.0


@dataclass(frozen=True)
class MemoryTrend:
    """A straight line through samples, by least squares.

    Attributes:
        samples: How many it goes through.
        mean_mib: Of them.
        slope_mib_a_minute: Of the line.
        error_mib_a_minute: Its standard error, as if samples were independent, which they are not.
    """

    samples: int
    mean_mib: float
    slope_mib_a_minute: float
    error_mib_a_minute: float


def trend(samples: Sequence[tuple[float, float]], after_s: float) -> MemoryTrend | None:
    """Return the trend of (seconds, bytes) samples later than ``after_s``; None of too few."""
    kept = [(at / 60, held / _MIB) for at, held in samples if at >= after_s]
    if len(kept) < 3:
        return None
    minutes, mebibytes = zip(*kept, strict=True)
    line = stats.linregress(minutes, mebibytes)
    mean = sum(mebibytes) / len(kept)
    return MemoryTrend(len(kept), mean, float(line.slope), float(line.stderr))


class MemoryWatch:
    """Samples the resident memory of processes each second until it is closed.

    Args:
        processes: By name.
    """

    def __init__(self, processes: Mapping[str, psutil.Process]) -> None:
        self._processes = dict(processes)
        self._closed = threading.Event()
        self.samples: dict[str, list[tuple[float, float]]] = {name: [] for name in processes}
        self._thread = threading.Thread(target=self._watch, name="memory", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Take no more samples."""
        self._closed.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._closed.wait(_EVERY_S):
            for name, process in self._processes.items():
                try:
                    held = process.memory_info().rss
                except psutil.Error:
                    continue
                self.samples[name].append((time.perf_counter(), held))
