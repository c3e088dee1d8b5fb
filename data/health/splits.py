"""Whether a version's splits and classes can carry learning and judging."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePosixPath

from data.health.findings import Example, Finding, Severity, finding
from data.items import SPLIT_NAMES, Item
from data.labels import labelled_defects
from data.manifest import Manifest

# Below this a class is hardly learned and its scores are chance.
_FEW_DEFECTS = 10
_IMBALANCE = 20
_LAST_NUMBER = re.compile(r"[_\-. ]?\d+$")


def check_kinds(manifest: Manifest) -> Iterator[Finding]:
    """Look for splits without a defective or without a good frame."""
    for split in SPLIT_NAMES:
        items = [item for item in manifest.items if item.split == split]
        for kind, wanted in (("defective", True), ("good", False)):
            if items and not any(item.is_defective is wanted for item in items):
                severity: Severity = "error" if wanted else "warning"
                missed = "what is missed" if wanted else "what is wrongly rejected"
                yield finding(
                    "split_without_defective" if wanted else "split_without_good",
                    severity,
                    f"The {split} split has no {kind} frame, so nothing is known of {missed}.",
                    [split],
                    f"Add {kind} frames of other parts, or change the split's shares or seed.",
                    count=len(items),
                )


def _defects(items: Iterable[Item], classes: Sequence[str]) -> Counter[str]:
    return Counter(name for item in items for name, _ in labelled_defects(item.labels, classes))


def check_judged_classes(manifest: Manifest) -> Iterator[Finding]:
    """Look for classes without a defect in the splits that judge."""
    for split in ("calibration", "test"):
        items = [item for item in manifest.items if item.split == split]
        missing = set(manifest.classes) - set(_defects(items, manifest.classes))
        if items and missing:
            yield finding(
                "class_not_judged",
                "warning",
                f"The {split} split has no defect of some classes.",
                missing,
                "Label more frames with these classes, or change the split's seed.",
            )


def check_learned_classes(manifest: Manifest) -> Iterator[Finding]:
    """Look for classes with too few defects to learn from."""
    train = _defects((item for item in manifest.items if item.split == "train"), manifest.classes)
    few = {f"{name}: {train[name]}" for name in manifest.classes if train[name] < _FEW_DEFECTS}
    if few:
        yield finding(
            "few_defects",
            "warning",
            f"Some classes have fewer than {_FEW_DEFECTS} defects to learn from.",
            few,
            "Label more of them, or merge the class with one that looks alike.",
        )


def check_imbalance(manifest: Manifest) -> Iterator[Finding]:
    """Look for classes that are rare beside the commonest."""
    counts = _defects(manifest.items, manifest.classes)
    most = max(counts.values(), default=0)
    rare = {f"{name}: {count}" for name, count in counts.items() if most > _IMBALANCE * count}
    if rare:
        yield finding(
            "class_imbalance",
            "warning",
            f"Some classes have less than a {_IMBALANCE}th of the commonest one's {most} defects.",
            rare,
            "Label more of the rare classes, or judge them by their own rates.",
        )


def check_groups(manifest: Manifest) -> Iterator[Finding]:
    """Look for groups that lie in several splits, which `assign_splits` never does."""
    groups: defaultdict[str, list[Item]] = defaultdict(list)
    for item in manifest.items:
        if item.group is not None:
            groups[item.group].append(item)
    torn = [
        Example(f"{group} ({', '.join(sorted(splits))})", tuple(item.name for item in items[:2]))
        for group, items in groups.items()
        if len(splits := {item.split or "unassigned" for item in items}) > 1
    ]
    if torn:
        yield finding(
            "group_in_several_splits",
            "error",
            "Some groups lie in several splits: what is learned of a part is also judged on it.",
            torn,
            "Freeze the version again; groups are then kept whole.",
        )


def check_part_names(manifest: Manifest) -> Iterator[Finding]:
    """Look for frames of one part in several splits, told by names such as part_012_frame_1."""
    parts: defaultdict[str, list[Item]] = defaultdict(list)
    for item in manifest.items:
        part = _LAST_NUMBER.sub("", str(PurePosixPath(item.name).with_suffix("")))
        # What remains of a plain running number names no part.
        if any(character.isdigit() for character in PurePosixPath(part).name):
            parts[part].append(item)
    leaks = [
        Example(item.name, (item.name,))
        for items in parts.values()
        if len({item.split for item in items}) > 1
        and len({item.group or item.name for item in items}) > 1
        for item in items
    ]
    if leaks:
        yield finding(
            "parts_may_leak",
            "warning",
            "Frames whose names differ in their last number alone lie in several splits; if they "
            "show one part, what is learned is also judged.",
            leaks,
            "Freeze again with a group_pattern that names the part, such as '(part_\\d+)'.",
        )
