"""Escape and overkill, by frame and by part, at the chosen thresholds and beside them.

Escape is defective units called OK over defective units; overkill is good units called NG over
**good** units.  A part is NG if any of its frames is, and defective if any of them shows a defect.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models import OperatingPoint
from models.certificate import exact_interval
from training.threshold_ladder import CHOSEN_RUNG, OFFSETS, ladder_thresholds


@dataclass
class _Part:
    is_defective: bool = False
    reached: int = 0
    frames: int = 0


@dataclass
class UnitCounts:
    """Defective and good units, frames or parts, by how many rungs of the ladder they reach.

    Attributes:
        defective: (len(OFFSETS) + 1,) int64.
        good: (len(OFFSETS) + 1,) int64.
    """

    defective: NDArray[np.int64] = field(
        default_factory=lambda: np.zeros(len(OFFSETS) + 1, np.int64)
    )
    good: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(OFFSETS) + 1, np.int64))

    def add(self, *, is_defective: bool, reached: int) -> None:
        """Count one unit that is NG at its ``reached`` lowest rungs."""
        (self.defective if is_defective else self.good)[reached] += 1

    def escape(self, rung: int = CHOSEN_RUNG) -> dict[str, Any]:
        """Return the rate of defective units that are OK at a rung, with its interval."""
        return exact_interval(int(self.defective[: rung + 1].sum()), int(self.defective.sum()))

    def overkill(self, rung: int = CHOSEN_RUNG) -> dict[str, Any]:
        """Return the rate of good units that are NG at a rung, with its interval."""
        return exact_interval(int(self.good[rung + 1 :].sum()), int(self.good.sum()))


class VerdictCounts:
    """Counts verdicts by frame and by part.

    What is kept of a part is three numbers; of frames nothing is kept but counts.
    """

    def __init__(self) -> None:
        self.frames = UnitCounts()
        self._parts: dict[str, _Part] = {}

    def add(self, part: str, *, is_defective: bool, reached: int) -> None:
        """Count a frame of a part, in any order of parts."""
        self.frames.add(is_defective=is_defective, reached=reached)
        known = self._parts.setdefault(part, _Part())
        known.is_defective |= is_defective
        known.reached = max(known.reached, reached)
        known.frames += 1

    @property
    def parts(self) -> UnitCounts:
        """The counts by part."""
        counts = UnitCounts()
        for part in self._parts.values():
            counts.add(is_defective=part.is_defective, reached=part.reached)
        return counts

    def by_part(self) -> dict[str, Any]:
        """Return the rates by part, and how many frames a part has."""
        counts = self.parts
        return {
            "parts": len(self._parts),
            "most_frames": max((part.frames for part in self._parts.values()), default=0),
            "escape": counts.escape(),
            "overkill": counts.overkill(),
        }

    def curve(self, point: OperatingPoint) -> list[dict[str, Any]]:
        """Return escape and overkill at every rung, from the lowest thresholds up."""
        rungs = {
            name: ladder_thresholds(chosen.threshold) for name, chosen in point.classes.items()
        }
        parts = self.parts
        return [
            {
                "log_odds_offset": offset,
                "is_chosen": rung == CHOSEN_RUNG,
                "thresholds": {name: round(rungs[name][rung], 6) for name in rungs},
                "frames": {
                    "escape": self.frames.escape(rung),
                    "overkill": self.frames.overkill(rung),
                },
                "parts": {"escape": parts.escape(rung), "overkill": parts.overkill(rung)},
            }
            for rung, offset in enumerate(OFFSETS)
        ]
