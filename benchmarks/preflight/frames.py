"""Drawn frames of a size, and a run's configuration on them."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from data import Box, BoxLabels, Manifest, SplitSpec, assign_splits, import_folder
from data.synthetic import write_dataset

CLASSES = ("scratch", "pit", "stain")
# Three parts of two frames: one for each split at the least.
FRAMES = 8
# Rows and columns of the boxes in a crowded frame.
CROWD = (12, 16)


def drawn_frames(work: Path, width_px: int, height_px: int) -> Path:
    """Return a folder of drawn frames with their manifest; it is drawn once."""
    root = (work / f"frames-{width_px}x{height_px}").resolve()
    manifest = root / "manifest.jsonl"
    if manifest.exists():
        return root
    root.mkdir(parents=True, exist_ok=True)
    write_dataset(root, count=FRAMES, good_rate=0.25, width_px=width_px, height_px=height_px)
    found = import_folder(root, classes=CLASSES, unlabelled="reject", root=None)
    items = assign_splits(found.items, SplitSpec(group_pattern=r"(part_\d+)"))
    Manifest("segmentation", CLASSES, items).write(manifest)
    return root


def crowded_frames(work: Path, width_px: int, height_px: int) -> Path:
    """Return a folder of the same frames that are labelled with many boxes each."""
    drawn = drawn_frames(work, width_px, height_px)
    root = drawn.with_name(f"{drawn.name}-crowded")
    manifest = root / "manifest.jsonl"
    if manifest.exists():
        return root
    shutil.copytree(drawn, root, dirs_exist_ok=True)
    rows, columns = CROWD
    step_y, step_x = height_px / rows, width_px / columns
    boxes = tuple(
        Box(CLASSES[column % len(CLASSES)], column * step_x, row * step_y, step_x / 2, step_y / 2)
        for row in range(rows)
        for column in range(columns)
    )
    items = Manifest.read(drawn / "manifest.jsonl").items
    crowded = tuple(replace(item, labels=BoxLabels(boxes)) for item in items)
    Manifest("detection", CLASSES, crowded).write(manifest)
    return root


def run_config(root: Path, **changes: Any) -> dict[str, Any]:
    """Return a configuration of two steps and one look on such frames."""
    return {
        "data": {
            "manifest": str(root / "manifest.jsonl"),
            "root": str(root),
            "cache": {"max_bytes": 0},
        },
        "budget": {"max_steps": 2},
        "checkpoint_every_s": 0,
        "memory": {"ladder": []},
        **changes,
    }
