"""Arms that take turns, so that each ratio compares neighbours in time."""

import time
from collections.abc import Callable, Mapping
from statistics import median

from benchmarks.quartiles import quartiles


def measure_rounds(
    arms: Mapping[str, Callable[[], object]], *, rounds: int, warm_up: int = 1
) -> dict[str, list[float]]:
    """Return the seconds of each arm in each round; warm-up rounds are left out.

    Every second round runs backwards, so that no arm always follows the same neighbour.
    """
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(warm_up + rounds):
        order = list(arms) if number % 2 == 0 else list(arms)[::-1]
        for name in order:
            start = time.perf_counter()
            arms[name]()
            if number >= warm_up:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(seconds: Mapping[str, list[float]], arm: str, baseline: str) -> dict[str, float]:
    """Return the quartiles of the rounds' ratios of two arms."""
    pairs = zip(seconds[arm], seconds[baseline], strict=True)
    return quartiles([own / other for own, other in pairs])


def median_s(seconds: Mapping[str, list[float]], arm: str) -> float:
    """Return an arm's median time."""
    return median(seconds[arm])
