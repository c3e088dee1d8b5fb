"""What is wrong with a data-set version, told from its manifest before hours are spent on it."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from data.items import SPLIT_NAMES, Item
from data.labels import BoxLabels, labelled_defects
from data.manifest import Manifest

Severity = Literal["error", "warning"]

MOST_EXAMPLES = 10
# Below this a class is hardly learned and its scores are chance.
_FEW_DEFECTS = 10
_IMBALANCE = 20
# A label over more of the frame marks the part, not a defect of it.
_MOST_OF_FRAME = 0.5
# Where sizes are this mixed, no frame is an odd one.
_COMMON_SHARE = 0.8
# Features of a network's first stage stand for this many pixels.
DEFAULT_STRIDE_PX = 4
_LAST_NUMBER = re.compile(r"[_\-. ]?\d+$")


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, and what to do about it.

    Attributes:
        code: A stable word.
        severity: "error" where training or its judgement can't work, "warning" where it suffers.
        detail: One sentence.
        count: Frames, defects or classes concerned.
        examples: Some of their names.
        hint: The remedy.
    """

    code: str
    severity: Severity
    detail: str
    count: int
    examples: tuple[str, ...]
    hint: str


def check_health(manifest: Manifest, *, stride_px: int = DEFAULT_STRIDE_PX) -> tuple[Finding, ...]:
    """Return what is wrong, errors first; nothing if nothing is.

    Pictures are not looked at.

    Args:
        manifest: The version, split.
        stride_px: Of the network's finest features; smaller defects may vanish between them.
    """
    checks: tuple[Callable[[Manifest], Iterator[Finding]], ...] = (
        _splits_without_a_kind,
        _classes_not_judged,
        _classes_hardly_learned,
        _imbalance,
        lambda manifest: _small_defects(manifest, stride_px),
        _labels_over_the_whole_part,
        _boxes_for_segmentation,
        _odd_frames,
        _parts_that_may_leak,
    )
    findings = [finding for check in checks for finding in check(manifest)]
    return tuple(sorted(findings, key=lambda finding: finding.severity))


def _finding(
    code: str, severity: Severity, detail: str, concerned: Iterable[str], hint: str
) -> Finding:
    names = sorted(concerned)
    return Finding(code, severity, detail, len(names), tuple(names[:MOST_EXAMPLES]), hint)


def _splits_without_a_kind(manifest: Manifest) -> Iterator[Finding]:
    for split in SPLIT_NAMES:
        items = [item for item in manifest.items if item.split == split]
        for kind, wanted in (("defective", True), ("good", False)):
            if items and not any(item.is_defective is wanted for item in items):
                severity: Severity = "error" if wanted else "warning"
                missed = "what is missed" if wanted else "what is wrongly rejected"
                yield Finding(
                    f"split_without_{kind}",
                    severity,
                    f"The {split} split has no {kind} frame, so nothing is known of {missed}.",
                    len(items),
                    (split,),
                    f"Add {kind} frames of other parts, or change the split's shares or seed.",
                )


def _defects(items: Iterable[Item], classes: Sequence[str]) -> Counter[str]:
    return Counter(name for item in items for name, _ in labelled_defects(item.labels, classes))


def _classes_not_judged(manifest: Manifest) -> Iterator[Finding]:
    for split in ("calibration", "test"):
        items = [item for item in manifest.items if item.split == split]
        missing = set(manifest.classes) - set(_defects(items, manifest.classes))
        if items and missing:
            yield _finding(
                "class_not_judged",
                "warning",
                f"The {split} split has no defect of some classes.",
                missing,
                "Label more frames with these classes, or change the split's seed.",
            )


def _classes_hardly_learned(manifest: Manifest) -> Iterator[Finding]:
    train = _defects((item for item in manifest.items if item.split == "train"), manifest.classes)
    few = {f"{name}: {train[name]}" for name in manifest.classes if train[name] < _FEW_DEFECTS}
    if few:
        yield _finding(
            "few_defects",
            "warning",
            f"Some classes have fewer than {_FEW_DEFECTS} defects to learn from.",
            few,
            "Label more of them, or merge the class with one that looks alike.",
        )


def _imbalance(manifest: Manifest) -> Iterator[Finding]:
    counts = _defects(manifest.items, manifest.classes)
    most = max(counts.values(), default=0)
    rare = {f"{name}: {count}" for name, count in counts.items() if most > _IMBALANCE * count}
    if rare:
        yield _finding(
            "class_imbalance",
            "warning",
            f"Some classes have less than a {_IMBALANCE}th of the commonest one's {most} defects.",
            rare,
            "Label more of the rare classes, or judge them by their own rates.",
        )


def _small_defects(manifest: Manifest, stride_px: int) -> Iterator[Finding]:
    points: list[str] = []
    small: list[str] = []
    for item in manifest.items:
        for name, area_px in labelled_defects(item.labels, manifest.classes):
            if area_px is None:
                continue
            if area_px <= 1:
                points.append(f"{item.name} ({name})")
            elif math.sqrt(area_px) < stride_px:
                small.append(f"{item.name} ({name})")
    if points:
        yield _finding(
            "single_pixel_labels",
            "warning",
            "Some labels cover a pixel at the most, as a slip of the hand does.",
            points,
            "Delete them, or draw the defects they stand for.",
        )
    if small:
        yield _finding(
            "defects_below_stride",
            "warning",
            f"Some defects are smaller than {stride_px} px, the stride of the network's features.",
            small,
            "Take the frames at a higher magnification, or choose a network with a finer stride.",
        )


def _labels_over_the_whole_part(manifest: Manifest) -> Iterator[Finding]:
    huge = [
        f"{item.name} ({name})"
        for item in manifest.items
        for name, area_px in labelled_defects(item.labels, manifest.classes)
        if area_px is not None and area_px > _MOST_OF_FRAME * item.width * item.height
    ]
    if huge:
        yield _finding(
            "labels_over_half_the_frame",
            "warning",
            "Some labels cover more than half of their frame.",
            huge,
            "Check whether the background was labelled, or the mask is inverted.",
        )


def _boxes_for_segmentation(manifest: Manifest) -> Iterator[Finding]:
    boxed = [item.name for item in manifest.items if isinstance(item.labels, BoxLabels)]
    if boxed and manifest.task == "segmentation":
        yield _finding(
            "boxes_for_segmentation",
            "warning",
            "Some frames are labelled by boxes, and segmentation learns the whole of a box.",
            boxed,
            "Draw outlines, or create a data set for detection.",
        )


def _odd_frames(manifest: Manifest) -> Iterator[Finding]:
    kinds: tuple[tuple[str, Callable[[Item], str]], ...] = (
        ("size", lambda item: f"{item.width}x{item.height} px"),
        ("depth", lambda item: f"{item.bit_depth} bit, {item.channels} channels"),
    )
    for what, describe in kinds:
        counts = Counter(map(describe, manifest.items))
        if len(counts) < 2:
            continue
        common, count = counts.most_common(1)[0]
        if count < _COMMON_SHARE * len(manifest.items):
            continue
        odd = [f"{i.name} ({describe(i)})" for i in manifest.items if describe(i) != common]
        yield _finding(
            f"odd_{what}",
            "warning",
            f"Some frames are unlike the {count} of {common}.",
            odd,
            "Check whether they come from another camera or were cut or converted on the way.",
        )


def _parts_that_may_leak(manifest: Manifest) -> Iterator[Finding]:
    """Look for frames of one part in several splits, told by names such as part_012_frame_1."""
    splits: defaultdict[str, set[str | None]] = defaultdict(set)
    names: defaultdict[str, list[str]] = defaultdict(list)
    for item in manifest.items:
        part = _LAST_NUMBER.sub("", str(PurePosixPath(item.name).with_suffix("")))
        # What remains of a plain running number names no part.
        if any(character.isdigit() for character in PurePosixPath(part).name):
            splits[part].add(item.split)
            names[part].append(item.name)
    leaks = [name for part, found in splits.items() if len(found) > 1 for name in names[part]]
    if leaks:
        yield _finding(
            "parts_may_leak",
            "warning",
            "Frames whose names differ in their last number alone lie in several splits; if they "
            "show one part, what is learned is also judged.",
            leaks,
            "Freeze again with a group_pattern that names the part, such as '(part_\\d+)'.",
        )
