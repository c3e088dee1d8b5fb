"""What a line shows: a good frame, one with a few defects, and one with many."""

from functools import partial
from typing import Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.serve.trained_models import PRODUCT_SEED
from data.synthetic import draw_frame

Shown = Literal["good", "few defects", "many defects"]
SHOWN: tuple[Shown, ...] = get_args(Shown)

# No model has learned from them.
_GOOD_SEED, _DEFECTIVE_SEED = 102, 101
# Each has one to four defects, all of which are seen on one part.
_CROWD_SEEDS = range(201, 213)
# Around a defect; what is copied along with it hides the seam.
_MARGIN_PX = 8


def shown_frames(width_px: int, height_px: int) -> dict[Shown, NDArray[np.uint8]]:
    """Return mono frames (H, W) of one product."""
    drawn = partial(draw_frame, width_px=width_px, height_px=height_px, product_seed=PRODUCT_SEED)
    good = drawn(_GOOD_SEED, defects=False).pixels
    crowded = good.copy()
    around = np.ones((2 * _MARGIN_PX + 1,) * 2, np.uint8)
    for seed in _CROWD_SEEDS:
        other = drawn(seed, part_seed=_GOOD_SEED)
        flawed = cv2.dilate((other.mask > 0).astype(np.uint8), around) > 0
        crowded[flawed] = other.pixels[flawed]
    return {
        "good": good,
        "few defects": drawn(_DEFECTIVE_SEED).pixels,
        "many defects": crowded,
    }
