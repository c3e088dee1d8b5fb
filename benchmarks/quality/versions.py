"""Freezes a version of a real set as the product would, and reads the files where they lie."""

import dataclasses
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from benchmarks.quality.protocol import SETS, SPLIT_SEED, SetSpec
from data import Item, Manifest, SplitSpec, assign_splits, import_folder


class MissingDatasetError(Exception):
    """A data set's folder is not there, or holds what can't be imported."""


@dataclass(frozen=True)
class FrozenVersion:
    """A version on disk.

    Attributes:
        manifest: Its file.
        root: What its file names are relative to.
        mean_area_px: Of its training frames.
    """

    manifest: Path
    root: Path
    mean_area_px: float


def freeze(set_name: str, datasets: Path, out: Path, most_frames: int | None) -> FrozenVersion:
    """Import a set, split it and write its manifest into ``out``.

    Args:
        set_name: One of `SETS`.
        datasets: Folder of the data sets.
        out: Folder for the manifest.
        most_frames: Of each split, defective ones first; None takes all.

    Raises:
        MissingDatasetError: The set is not there or can't be imported.
    """
    spec = SETS[set_name]
    root = (datasets / spec.folder).resolve()
    if not root.is_dir():
        raise MissingDatasetError(
            f"{root} is not there; name the folder of data sets with --datasets"
        )
    found = import_folder(root, classes=spec.classes, unlabelled=spec.unlabelled, root=None)
    if found.problems:
        raise MissingDatasetError(f"{root}: {len(found.problems)} problems: {found.problems[0]}")
    items = [item for item in found.items if not Path(item.name).name.startswith(spec.twins)]
    split = _split(items, spec)
    kept = _first_of_each_split(split, most_frames)
    manifest = Manifest("segmentation", tuple(found.classes), kept, split_seed=SPLIT_SEED)
    out.mkdir(parents=True, exist_ok=True)
    path = (out / f"{set_name}.jsonl").resolve()
    manifest.write(path)
    areas = [item.width * item.height for item in kept if item.split == "train"]
    return FrozenVersion(path, root, sum(areas) / len(areas))


def _split(items: list[Item], spec: SetSpec) -> tuple[Item, ...]:
    """Split by part; parts that are stretches of numbers are named in front of the frames."""
    if spec.numbers_a_part is None:
        return assign_splits(items, SplitSpec(seed=SPLIT_SEED, group_pattern=spec.group_pattern))
    named = []
    for item in items:
        found = re.search(spec.group_pattern or "", item.name)
        assert found is not None
        part = f"{found[1]}-{int(found[2]) // spec.numbers_a_part}"
        named.append(dataclasses.replace(item, name=f"part {part}/{item.name}"))
    return assign_splits(named, SplitSpec(seed=SPLIT_SEED, group_pattern=r"^part ([^/]+)/"))


def _first_of_each_split(items: tuple[Item, ...], most: int | None) -> tuple[Item, ...]:
    if most is None:
        return items
    kept: Counter[str | None] = Counter()
    chosen = []
    for item in sorted(items, key=lambda item: (not item.is_defective, item.width * item.height)):
        if kept[item.split] < most:
            kept[item.split] += 1
            chosen.append(item)
    return tuple(chosen)
