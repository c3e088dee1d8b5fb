"""What became of each test frame under each arm, read from the runs' own files."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from service.comparisons.paired import Counts
from service.errors import StorageError
from service.jobs.run_directory import TEST_FRAMES_FILE

Outcome = dict[str, Any]


@dataclass(frozen=True)
class ArmOutcomes:
    """The test frames of one arm.

    Attributes:
        frames: One object a frame, see ``training/frame_outcomes.py``, in order of their names.
    """

    frames: tuple[Outcome, ...]

    @property
    def is_grouped(self) -> bool:
        """Whether any two frames are of one part, lot or specimen."""
        units = {_unit_of(frame) for frame in self.frames}
        return len(units) < len(self.frames)

    @property
    def units(self) -> int:
        """Independent units among the frames."""
        return len({_unit_of(frame) for frame in self.frames})

    def escapes(self) -> Counts:
        """Return (U, 2): defective frames called good, and defective frames."""
        return self._sum(
            lambda frame: [frame["defective"] and not frame["rejected"], frame["defective"]]
        )

    def overkill(self) -> Counts:
        """Return (U, 2): good frames rejected, and good frames."""
        return self._sum(
            lambda frame: [frame["rejected"] and not frame["defective"], not frame["defective"]]
        )

    def found(self, from_px: float | None = None, below_px: float | None = None) -> Counts:
        """Return (U, 2): defects found, and defects, of those with a short side in the range."""

        def count(frame: Outcome) -> list[int]:
            inside = [
                defect["found"]
                for defect in frame["defects"]
                if (from_px is None or defect["short_side_px"] >= from_px)
                and (below_px is None or defect["short_side_px"] < below_px)
            ]
            return [sum(inside), len(inside)]

        return self._sum(count)

    @property
    def has_pixels(self) -> bool:
        """Whether pixels were judged, which a detector has none of."""
        return all(frame["pixels"] is not None for frame in self.frames)

    def pixels(self) -> Counts:
        """Return (U, 3): true positive, false positive and false negative pixels."""
        return self._sum(lambda frame: frame["pixels"])

    def _sum(self, count: Callable[[Outcome], Iterable[int]]) -> Counts:
        by_unit: defaultdict[str, Any] = defaultdict(int)
        for frame in self.frames:
            by_unit[_unit_of(frame)] += np.array([*count(frame)], np.int64)
        return np.array([by_unit[unit] for unit in sorted(by_unit)], np.int64)


def read_outcomes(run_dir: Path) -> ArmOutcomes:
    """Read what became of a finished run's test frames.

    Raises:
        StorageError: The file is missing or damaged.
    """
    path = run_dir / TEST_FRAMES_FILE
    try:
        frames = [json.loads(line) for line in path.read_bytes().splitlines()]
        frames.sort(key=lambda frame: str(frame["name"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StorageError("outcomes_damaged", f"{path}: {error}") from error
    return ArmOutcomes(tuple(frames))


def _unit_of(frame: Outcome) -> str:
    group = frame["group"]
    # A group may be called what a frame is called.
    return f"frame {frame['name']}" if group is None else f"group {group}"
