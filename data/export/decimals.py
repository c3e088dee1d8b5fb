"""Choosing the decimals that a reader turns back into the very float64."""

from collections.abc import Callable
from decimal import ROUND_DOWN, Context, Decimal

# float64 needs 17 digits.  Rounding down keeps a box that ends on the frame's edge inside it.
_PARTS = Context(prec=20, rounding=ROUND_DOWN)

DecimalOf = Callable[[float], Decimal]


def shortest(value: float) -> Decimal:
    """Return the shortest decimal that is read as this float64: 0.1 for 0.1."""
    return Decimal(repr(value))


# A sum of shortest decimals may round to a neighbour of what it should; that of the exact values
# does not, at the price of up to a thousand digits.
DECIMALS: tuple[DecimalOf, ...] = (shortest, Decimal)


def part(value: Decimal, side_px: int) -> Decimal:
    """Return pixels as a part of a frame's side, to 20 digits."""
    return _PARTS.divide(value, Decimal(side_px))


def written(value: Decimal) -> str:
    """Return a decimal without exponent and without needless zeros."""
    text = format(value, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text
