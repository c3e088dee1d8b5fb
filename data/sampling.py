"""Which training frames an epoch shows, how often, and what each is to show.

Resampling is for training alone: calibration and test frames are always each looked at once, so
that thresholds and scores hold for the frames as they came from the line.
"""

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

Wish = Literal["any", "defect", "clean"]


class SamplingSpec(BaseModel):
    """How often training shows defects.

    Attributes:
        defect_rate: Share of the frames or windows of an epoch that show a labelled defect, 0.05
            to 0.95.  Frames of the rarer kind are shown several times; every frame is shown.  None
            shows each frame once.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    defect_rate: float | None = Field(default=None, ge=0.05, le=0.95)


@dataclass(frozen=True)
class Draw:
    """One showing of a frame.

    Attributes:
        index: The frame's.
        repeat: How often it was shown before in the same epoch; each showing varies on its own.
        wish: What is to be seen: ``defect`` and ``clean`` are kept wherever the frame allows it.
    """

    index: int
    repeat: int = 0
    wish: Wish = "any"


@dataclass(frozen=True)
class EpochCounts:
    """How many showings of each kind make an epoch.

    Attributes:
        defective: Showings with a defect.
        clean: Showings without one.
    """

    defective: int
    clean: int

    @property
    def defect_rate(self) -> float:
        """The share of showings with a defect."""
        return self.defective / (self.defective + self.clean)


def count_epoch(
    defective: int, good: int, defect_rate: float, *, clean_windows: bool
) -> EpochCounts:
    """Return the fewest showings that show every frame and come nearest to the rate.

    Args:
        defective: Frames with a labelled defect, at least one.
        good: Frames without.
        defect_rate: Wanted share of showings with a defect.
        clean_windows: Whether windows without a defect may be cut from defective frames, which is
            done where there is no good frame.  Without good frames and without windows the rate
            can't be kept, and every showing has a defect.
    """
    if good == 0 and not clean_windows:
        return EpochCounts(defective, 0)
    clean = round(defective * (1 - defect_rate) / defect_rate)
    if clean >= good:
        return EpochCounts(defective, max(clean, 1))
    return EpochCounts(max(defective, round(good * defect_rate / (1 - defect_rate))), good)


def draw_epoch(
    defective: Sequence[bool],
    defect_rate: float,
    *,
    strata: Sequence[Hashable],
    clean_windows: bool,
    seed: int,
    epoch: int,
) -> list[Draw]:
    """Return an epoch's showings in order, a pure function of its arguments.

    Showings with a defect are spread evenly: any run of n consecutive ones holds n times the
    epoch's rate, rounded up or down.  How many showings a stratum gets is the same every epoch.

    Args:
        defective: Of each frame, whether a defect is labelled; one is.
        defect_rate: See `count_epoch`.
        strata: Of each frame, what it must not be exchanged for: its size.
        clean_windows: See `count_epoch`.
        seed: Not negative.
        epoch: From 0.
    """
    with_defect = [index for index, labelled in enumerate(defective) if labelled]
    without = [index for index, labelled in enumerate(defective) if not labelled]
    counts = count_epoch(len(with_defect), len(without), defect_rate, clean_windows=clean_windows)
    rng = np.random.default_rng([seed, epoch])
    shown = _passes(with_defect, counts.defective, strata, rng)
    clean = _passes(without or with_defect, counts.clean, strata, rng)
    # A defective frame that gives clean windows too must not vary there as it does elsewhere.
    first_repeat = 0 if without else 1 + max(repeat for _, repeat in shown)
    queues = {
        True: iter([Draw(index, repeat, "defect") for index, repeat in shown]),
        False: iter([Draw(index, first_repeat + repeat, "clean") for index, repeat in clean]),
    }
    total = counts.defective + counts.clean
    phase = int(rng.integers(total))
    # Bresenham's line: the running count of defects never leaves the straight one by a whole frame.
    return [
        next(queues[(place * counts.defective + phase) % total + counts.defective >= total])
        for place in range(total)
    ]


def _passes(
    pool: Sequence[int], count: int, strata: Sequence[Hashable], rng: np.random.Generator
) -> list[tuple[int, int]]:
    """Return ``count`` (index, repeat): whole passes over the pool, each in an order of its own.

    The last, partial pass takes from each stratum the same number every epoch.
    """
    whole, rest = divmod(count, len(pool))
    passes = [[int(index) for index in rng.permutation(pool)] for _ in range(whole + bool(rest))]
    if rest:
        left = _apportion(Counter(strata[index] for index in pool), rest)
        chosen = []
        for index in passes[-1]:
            if left[strata[index]]:
                left[strata[index]] -= 1
                chosen.append(index)
        passes[-1] = chosen
    return [(index, repeat) for repeat, order in enumerate(passes) for index in order]


def _apportion(sizes: Counter[Hashable], count: int) -> Counter[Hashable]:
    """Share ``count`` among strata by their sizes; what is left goes to the largest remainders."""
    total = sum(sizes.values())
    shares = Counter({stratum: size * count // total for stratum, size in sizes.items()})
    by_remainder = sorted(
        sizes, key=lambda stratum: (-(sizes[stratum] * count % total), str(stratum))
    )
    for stratum in by_remainder[: count - sum(shares.values())]:
        shares[stratum] += 1
    return shares
