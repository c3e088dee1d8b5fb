"""What a model must beat: answers that need no training."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data import Frame
from training.metrics import PixelCounts, ScoreHistogram


def trivial_baselines(choose_on: Iterable[Frame], judge_on: Iterable[Frame]) -> dict[str, Any]:
    """Return the pixel Dice of trivial answers to "is there any defect here?".

    All background, all foreground, and a threshold on brightness in the better of both directions.

    Args:
        choose_on: Frames on which the brightness threshold is chosen.
        judge_on: Frames on which all three are scored.
    """
    darker, brighter = ScoreHistogram(), ScoreHistogram()
    for frame in choose_on:
        brightness = _brightness(frame)
        labelled = frame.mask.max(axis=2)
        brighter.add(brightness, labelled)
        darker.add(1 - brightness, labelled)
    candidates = {"brighter": brighter.best_dice(), "darker": darker.best_dice()}
    direction = max(candidates, key=lambda name: candidates[name][0] or 0.0)
    threshold = candidates[direction][1]
    counts = {name: PixelCounts() for name in ("background", "foreground", "brightness")}
    for frame in judge_on:
        brightness = _brightness(frame)
        score = brightness if direction == "brighter" else 1 - brightness
        labelled = frame.mask.max(axis=2) != 0
        counts["background"].add(np.zeros_like(labelled), labelled)
        counts["foreground"].add(np.ones_like(labelled), labelled)
        counts["brightness"].add(score >= threshold, labelled)
    return {
        "all_background": counts["background"].scores(),
        "all_foreground": counts["foreground"].scores(),
        "brightness_threshold": {
            **counts["brightness"].scores(),
            "direction": direction,
            "threshold": threshold,
        },
    }


def _brightness(frame: Frame) -> NDArray[np.float32]:
    """Return the mean over channels, scaled to [0, 1] by the depth."""
    white = np.float32(np.iinfo(frame.pixels.dtype).max)
    # Channel by channel: NumPy's mean over so short an axis takes twenty times as long.
    channels = np.moveaxis(frame.pixels, 2, 0)
    total = channels[0].astype(np.float32)
    for channel in channels[1:]:
        total += channel
    brightness: NDArray[np.float32] = total / np.float32(len(channels)) / white
    return brightness
