"""The median of repeated measurements and the quartiles beside it."""

from collections.abc import Sequence
from statistics import quantiles


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Return the median of at least two values and the quartiles beside it."""
    low, middle, high = quantiles(values, n=4, method="inclusive")
    return {"low": low, "median": middle, "high": high}
