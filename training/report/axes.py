"""Axes: where a value lies on a plot, and which values are marked."""

import math
from dataclasses import dataclass

# A plot this wide is readable on a phone, where a page is about as many pixels wide.
WIDTH = 420.0
HEIGHT = 270.0
LEFT, RIGHT, TOP, BOTTOM = 66.0, 22.0, 12.0, 44.0
_TICKS = 5


@dataclass(frozen=True)
class Axis:
    """One direction of a plot.

    Attributes:
        label: What is measured, with its unit.
        low: Value at the start.
        high: Value at the end; larger than ``low``.
        is_log: Equal factors are equal distances; both ends must be above 0.
        is_percent: Ticks are shares, written as percentages.
    """

    label: str
    low: float = 0.0
    high: float = 1.0
    is_log: bool = False
    is_percent: bool = False

    def share(self, value: float) -> float:
        """Return where a value lies, 0 at the start and 1 at the end; others are held inside."""
        if self.is_log:
            value = max(value, self.low)
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return min(max(share, 0.0), 1.0)

    def x(self, value: float) -> float:
        """Return the horizontal place of a value."""
        return round(LEFT + self.share(value) * (WIDTH - LEFT - RIGHT), 2)

    def y(self, value: float) -> float:
        """Return the vertical place of a value; SVG counts downwards."""
        return round(HEIGHT - BOTTOM - self.share(value) * (HEIGHT - TOP - BOTTOM), 2)

    def ticks(self) -> list[float]:
        """Return round values from end to end."""
        return _log_ticks(self.low, self.high) if self.is_log else _ticks(self.low, self.high)

    def text(self, value: float) -> str:
        """Return a tick's text."""
        return f"{100 * value:.4g} %" if self.is_percent else f"{value:.4g}"


def fitting_axis(label: str, values: list[float], *, is_log: bool = False) -> Axis:
    """Return an axis that holds all values; ``is_log`` is dropped where one is not above 0."""
    if not values:
        return Axis(label)
    low, high = min(values), max(values)
    if is_log and low > 0:
        # A single value stands in the middle of a doubling up and down.
        margin = 1.1 if high > 1.5 * low else 2.0
        return Axis(label, low / margin, high * margin, is_log=True)
    low = min(low, 0.0) if low < 0.5 * high else low
    least = max(abs(low), abs(high)) * 1e-6
    return Axis(label, low, high if high - low > least else low + max(abs(low), 1.0))


def _ticks(low: float, high: float) -> list[float]:
    rough = (high - low) / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    # Twelve digits are free of what the product of an index and a step adds to them.
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        ticks = [
            factor * 10.0**power
            for power in powers
            for factor in factors
            if low <= factor * 10.0**power <= high
        ]
        if len(ticks) < 2:
            return _ticks(low, high)
        if len(ticks) <= _TICKS + 2:
            return ticks
    return ticks[:: math.ceil(len(ticks) / _TICKS)]
