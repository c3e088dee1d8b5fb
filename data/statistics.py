"""Counts and sizes of a data set, for a person to judge whether it can support a decision."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from data.items import SPLIT_NAMES, Item
from data.labels import labelled_defects

QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


@dataclass(frozen=True)
class SplitCounts:
    """One split's frames and groups."""

    frames: int
    good: int
    defective: int
    groups: int


@dataclass(frozen=True)
class ClassCounts:
    """One class's labelled defects.

    Attributes:
        frames: Frames with at least one, by split.
        defects: Labelled defects in all splits; a mask's are its 8-connected regions.
        area_px_quantiles: {quantile: area in px}, empty where no area was measured.
    """

    frames: dict[str, int]
    defects: int
    area_px_quantiles: dict[str, float]


@dataclass(frozen=True)
class ManifestStatistics:
    """What a data set holds.

    Attributes:
        frames: All frames.
        splits: By split name; ``unassigned`` where splits were not assigned yet.
        classes: By class name.
        sizes: {"2500x2000": frames}.
        bit_depths: {"8": frames}.
        channels: {"1": frames}.
        labels: {"boxes": frames} by the kind of their labels; a good frame's is ``good``.
    """

    frames: int
    splits: dict[str, SplitCounts]
    classes: dict[str, ClassCounts]
    sizes: dict[str, int]
    bit_depths: dict[str, int]
    channels: dict[str, int]
    labels: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        """Return plain dictionaries, ready for JSON."""
        return asdict(self)


def count_items(items: Sequence[Item], classes: Sequence[str]) -> ManifestStatistics:
    """Count frames, defects and sizes; areas come from the labels, no file is read."""
    splits = {
        split: _count_split([item for item in items if _split_of(item) == split])
        for split in (*SPLIT_NAMES, "unassigned")
        if split != "unassigned" or any(item.split is None for item in items)
    }
    return ManifestStatistics(
        frames=len(items),
        splits=splits,
        classes=_count_classes(items, classes),
        sizes=_histogram(f"{item.width}x{item.height}" for item in items),
        bit_depths=_histogram(str(item.bit_depth) for item in items),
        channels=_histogram(str(item.channels) for item in items),
        labels=_histogram(item.labels.kind for item in items),
    )


def _split_of(item: Item) -> str:
    return item.split or "unassigned"


def _count_split(items: Sequence[Item]) -> SplitCounts:
    defective = sum(item.is_defective for item in items)
    groups = {item.group if item.group is not None else item.name for item in items}
    return SplitCounts(len(items), len(items) - defective, defective, len(groups))


def _count_classes(items: Sequence[Item], classes: Sequence[str]) -> dict[str, ClassCounts]:
    frames: defaultdict[str, Counter[str]] = defaultdict(Counter)
    areas: defaultdict[str, list[float | None]] = defaultdict(list)
    for item in items:
        found = labelled_defects(item.labels, classes)
        for name, area in found:
            areas[name].append(area)
        for name in {name for name, _ in found}:
            frames[name][_split_of(item)] += 1
    return {
        name: ClassCounts(
            frames=dict(sorted(frames[name].items())),
            defects=len(areas[name]),
            area_px_quantiles=_quantiles([area for area in areas[name] if area is not None]),
        )
        for name in classes
    }


def _quantiles(areas: Sequence[float]) -> dict[str, float]:
    values: list[float] = np.quantile(areas, QUANTILES).tolist() if areas else []
    return {f"{q:g}": round(v, 1) for q, v in zip(QUANTILES, values, strict=False)}


def _histogram(values: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))
