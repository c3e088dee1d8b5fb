"""Recall at a fixed number of false regions a good frame (FROC), on the ladder of thresholds."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.certificate import exact_interval
from training.threshold_ladder import OFFSETS, ladder_thresholds

FALSE_REGIONS_A_FRAME = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0)


def free_response(
    located: NDArray[np.int64],
    defects: int,
    false_regions: NDArray[np.int64],
    good_frames: int,
    chosen_threshold: float,
) -> dict[str, Any]:
    """Return the curve and the recall at the fixed numbers of false regions.

    Towards lower thresholds false regions grow together, down to a single one over the whole frame.
    A rung therefore counts as many as the worst of the rungs above it, and a defect is recalled if
    it is located (`training.threshold_ladder`), not merely touched.  Between rungs nothing is
    interpolated, so that what is stated was reached.

    Args:
        located: (len(OFFSETS),) labelled regions that are located, by rung.
        defects: All labelled regions.
        false_regions: (len(OFFSETS),) false regions on good frames, by rung.
        good_frames: The denominator of false regions.
        chosen_threshold: The class's, in the middle of the ladder.

    Returns:
        ``curve`` from the highest threshold down, ``at`` the fixed numbers, and ``reason`` where
        no defect or no good frame allows either.
    """
    if defects == 0 or good_frames == 0:
        reason = "no frame shows this class" if defects == 0 else "no frame is good"
        return {"curve": [], "at": [], "good_frames": good_frames, "reason": reason}
    thresholds = ladder_thresholds(chosen_threshold)
    worst = np.maximum.accumulate(false_regions[::-1])[::-1]
    curve = [
        {
            "threshold": round(thresholds[rung], 6),
            "false_regions_a_good_frame": int(worst[rung]) / good_frames,
            "recall": int(located[rung]) / defects,
        }
        for rung in reversed(range(len(OFFSETS)))
    ]
    return {
        "curve": curve,
        "at": [
            _recall_at(allowed, located, worst / good_frames, defects, thresholds)
            for allowed in FALSE_REGIONS_A_FRAME
        ],
        "good_frames": good_frames,
        "reason": None,
    }


def _recall_at(
    allowed: float,
    located: NDArray[np.int64],
    false_a_frame: NDArray[np.float64],
    defects: int,
    thresholds: tuple[float, ...],
) -> dict[str, Any]:
    suitable = np.flatnonzero(false_a_frame <= allowed)
    answer: dict[str, Any] = {"false_regions_a_good_frame": allowed}
    if len(suitable) == 0:
        return {**answer, "threshold": None, "recall": None}
    rung = int(suitable[np.argmax(located[suitable])])
    return {
        **answer,
        "threshold": round(thresholds[rung], 6),
        "recall": exact_interval(int(located[rung]), defects),
    }
