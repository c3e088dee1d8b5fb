"""Places in a frame that a file gives as decimals: computed exactly, rounded to float64 once.

Pascal VOC counts from 1 and YOLO in parts of the frame, so what `Box` and `Polygon` keep has to be
computed.  In float64 that loses the last bit of many places, for good: no decimal that
such a reader rounds first, subtracts 1 from and rounds again comes back to them.
"""

import math
from decimal import Context, Decimal, DecimalException

# A float64 has at most 1074 binary, and so decimal, places behind the point, and a few before it.
EXACT = Context(prec=1200)


def read_decimal(text: str) -> Decimal | None:
    """Return the number that a text holds; None if it holds none, or none that is finite."""
    try:
        return Decimal(text) if math.isfinite(float(text)) else None
    except (ValueError, DecimalException):
        return None


def extent(low: Decimal, high: Decimal, side_px: int) -> tuple[float, float] | None:
    """Return where a box begins and how long it is, cut off at the frame's edges.

    Args:
        low: Where it begins along an axis, in pixels.
        high: Where it ends.
        side_px: Of the frame, along that axis.

    Returns:
        Two float64 whose sum is above the first and at most ``side_px``, also when it is computed
        in float64; None if nothing of the box lies inside.
    """
    start, end = max(float(low), 0.0), min(float(high), float(side_px))
    if start >= end:
        return None
    length = float(EXACT.subtract(high, low))
    is_whole = (start, end) == (float(low), float(high))
    if is_whole and start < start + length <= side_px:
        return start, length
    return start, end - start
