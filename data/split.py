"""Training, calibration and test: split by group, so that no part is both learned and judged."""

import dataclasses
import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from data.errors import LayoutError
from data.items import SPLIT_NAMES, Item, SplitName


@dataclass(frozen=True)
class SplitSpec:
    """How to split.

    Attributes:
        train: Share of the frames, above 0.
        calibration: Share on which thresholds are chosen; 0 leaves the split empty.
        test: Share that is looked at once; 0 leaves the split empty.
        seed: Which of the possible splits.
        group_pattern: Regular expression searched in an item's name; its first group names the
            part, lot or specimen.  None makes every frame its own group.

    Raises:
        LayoutError: The shares are no shares, or the pattern is no pattern with a group.
    """

    train: float = 0.7
    calibration: float = 0.15
    test: float = 0.15
    seed: int = 0
    group_pattern: str | None = None

    def __post_init__(self) -> None:
        shares = (self.train, self.calibration, self.test)
        if not (min(shares) >= 0 and self.train > 0 and math.isclose(sum(shares), 1.0)):
            raise LayoutError(
                "split_shares",
                f"The shares {shares} are not three shares of 1 with some training.",
                hint="Use for example 0.7, 0.15 and 0.15.",
            )
        if self.group_pattern is not None:
            _compile(self.group_pattern)

    def share(self, split: SplitName) -> float:
        """Return the share of ``split``."""
        return {"train": self.train, "calibration": self.calibration, "test": self.test}[split]


def assign_splits(items: Iterable[Item], spec: SplitSpec) -> tuple[Item, ...]:
    """Give each item its group and split.

    Groups with a defective frame and groups without are dealt separately, each in the order of a
    keyed hash: the result depends on the seed and the names alone.  The next group goes where the
    most frames are missing.  From three groups of a kind on, every split with a share gets one
    before any gets two; below that, splits that are still empty come first.

    Args:
        items: In any order.
        spec: Shares, seed and grouping.

    Returns:
        The items in the given order, with ``group`` and ``split`` set.

    Raises:
        LayoutError: The pattern does not match a name (``group_pattern_mismatch``), or there are
            fewer groups than splits (``too_few_groups``).
    """
    items = tuple(items)
    groups = [_group_of(item.name, spec.group_pattern) for item in items]
    wanted = [split for split in SPLIT_NAMES if spec.share(split) > 0]
    if len(set(groups)) < len(wanted):
        raise LayoutError(
            "too_few_groups",
            f"{len(items)} frames form {len(set(groups))} groups; {len(wanted)} splits need at "
            "least one each.",
            hint="Add frames of other parts, or correct the pattern that names the part.",
        )
    sizes = Counter(groups)
    defective = {group for item, group in zip(items, groups, strict=True) if item.is_defective}
    placed: dict[str, SplitName] = {}
    for stratum in (defective, set(sizes) - defective):
        ordered = sorted(stratum, key=lambda group: (_draw(spec.seed, group), group))
        _deal(ordered, sizes, spec, wanted, placed)
    return tuple(
        dataclasses.replace(item, group=group, split=placed[group])
        for item, group in zip(items, groups, strict=True)
    )


def _compile(pattern: str) -> re.Pattern[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise LayoutError(
            "group_pattern_invalid",
            f"The pattern {pattern!r} is no regular expression: {error}.",
            hint=r"Use for example 'part_(\d+)'.",
        ) from error
    if compiled.groups < 1:
        raise LayoutError(
            "group_pattern_invalid",
            f"The pattern {pattern!r} has no group in parentheses to name the part.",
            hint=r"Put the part's name in parentheses, for example 'part_(\d+)'.",
        )
    return compiled


def _group_of(name: str, pattern: str | None) -> str:
    if pattern is None:
        return name
    match = _compile(pattern).search(name)
    if match is None or match.group(1) is None:
        raise LayoutError(
            "group_pattern_mismatch",
            f"The pattern {pattern!r} finds no part in this name.",
            file=name,
            hint="Rename the file, or use a pattern that every name matches.",
        )
    return match.group(1)


def _draw(seed: int, group: str) -> bytes:
    # A hash of the name rather than a shuffled list: adding a frame moves few others.
    return hashlib.sha256(f"{seed}\0{group}".encode()).digest()


def _deal(
    ordered: Sequence[str],
    sizes: Counter[str],
    spec: SplitSpec,
    wanted: Sequence[SplitName],
    placed: dict[str, SplitName],
) -> None:
    """Place one stratum's groups into ``placed``."""
    total = sum(sizes[group] for group in ordered)
    missing = {split: spec.share(split) * total for split in wanted}
    own: Counter[SplitName] = Counter()
    # Test before calibration: a threshold without a test is a claim that nobody can check.
    preference: list[SplitName] = [s for s in ("train", "test", "calibration") if s in wanted]
    for group in ordered:
        if len(ordered) < len(wanted):
            overall = Counter(placed.values())
            split = min(preference, key=lambda s: (own[s], overall[s] > 0, preference.index(s)))
        else:
            # max() keeps the first of equals, and `preference` is in a fixed order.
            split = max(preference, key=lambda s: (own[s] == 0, missing[s]))
        placed[group] = split
        own[split] += 1
        missing[split] -= sizes[group]
