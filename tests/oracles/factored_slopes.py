"""Slopes of the variance from a few places of the output map, by autograd and without factors."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tests.oracles.cross_iteration import (
    CentredOracle,
    channel_slopes,
    moment,
    population_variance,
)


def spread_places(rows: int, columns: int, count: int) -> list[int]:
    """Return the flat places of a map that factors are taken from; see `stratified_places`."""
    total = rows * columns
    if total <= count:
        return list(range(total))
    places = []
    for number in range(count):
        first, following = number * total // count, (number + 1) * total // count
        turn = (number * 2_654_435_769 + 2**31) % 2**32
        if following - first < columns:
            places.append(first + turn * (following - first) // 2**32)
            continue
        place = first + (following - first - columns) // 2
        while place % columns != turn * columns // 2**32:
            place += 1
        places.append(place)
    return places


@dataclass
class FactoredOracle(CentredOracle):
    """The slope of the spread of a few places around the batch's mean, scaled to <D, w> = 2 var.

    Attributes:
        rank: Places.
    """

    rank: int = 3

    def options(self) -> dict[str, Any]:
        return {**super().options(), "slope_rank": self.rank}

    def slope(self, y: Tensor, weight: Tensor) -> Tensor:
        batch, channels, rows, columns = y.shape
        flat = y.permute(0, 2, 3, 1).reshape(-1, channels)
        sampled = flat[spread_places(batch * rows, columns, self.rank)]
        spread = (sampled - moment(y, 1)).square().mean(0)
        slope = channel_slopes(spread, weight)
        # <D, w> is twice the spread; one far below the variance missed what the channel does.
        gain = population_variance(y).detach() / spread.detach()
        gain[gain >= 16] = 1
        return slope * gain.view(-1, 1, 1, 1)
