"""How well each frame's labelled pixels are covered: mean, median and worst, streamed."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

# The median is resolved to this.
RESOLUTION = 0.001
_BINS = round(1 / RESOLUTION) + 1


@dataclass
class FrameScores:
    """One score in [0, 1] a frame.

    Attributes:
        counts: (bins,) int64.
        total: Sum of the scores.
        worst: The lowest score; None before the first.
        worst_frame: The first frame that has it.
    """

    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(_BINS, np.int64))
    total: float = 0.0
    worst: float | None = None
    worst_frame: str | None = None

    def add(self, score: float, frame: str) -> None:
        """Count one frame's score."""
        self.counts[round(score / RESOLUTION)] += 1
        self.total += score
        if self.worst is None or score < self.worst:
            self.worst, self.worst_frame = score, frame

    def summary(self) -> dict[str, Any]:
        """Return ``n``, ``mean`` and ``worst`` (exact), and ``median`` (to half of `RESOLUTION`).

        Of an even number of scores it is the lower of the two in the middle.
        """
        n = int(self.counts.sum())
        if n == 0:
            return {"n": 0, "mean": None, "median": None, "worst": None, "worst_frame": None}
        middle = int(np.searchsorted(np.cumsum(self.counts), (n + 1) // 2))
        return {
            "n": n,
            "mean": self.total / n,
            "median": round(middle * RESOLUTION, 6),
            "worst": self.worst,
            "worst_frame": self.worst_frame,
        }
