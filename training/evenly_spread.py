"""Choosing some of many frames so that every part of a data set has its share."""

import numpy as np


def evenly_spread(count: int, most: int) -> list[int]:
    """Return at most so many of ``count`` places, evenly spread, the first and the last included.

    Args:
        count: Places there are, from 0.
        most: To choose; a single one is the first.
    """
    places = np.linspace(0, count - 1, min(count, most)).round().astype(int)
    return [int(place) for place in np.unique(places)]
