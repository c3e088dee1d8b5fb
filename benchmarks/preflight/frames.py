"""Drawn frames of a size, and a run's configuration on them."""

from pathlib import Path
from typing import Any

from data import Manifest, SplitSpec, assign_splits, import_folder
from data.synthetic import write_dataset

CLASSES = ("scratch", "pit", "stain")
# Three parts of two frames: one for each split at the least.
FRAMES = 8


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
