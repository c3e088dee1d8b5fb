"""What tests of whole runs share."""

from pathlib import Path

import pytest

from data import Manifest, SplitSpec, assign_splits, import_folder
from data.synthetic import write_dataset
from tests.training_runs import CLASSES


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A version of 24 drawn frames: the frames' root with the manifest beside them."""
    root = tmp_path_factory.mktemp("frames")
    write_dataset(root, count=24, good_rate=0.25, seed=3, width_px=192, height_px=160)
    found = import_folder(root, classes=CLASSES, unlabelled="reject", root=None)
    assert not found.problems
    items = assign_splits(found.items, SplitSpec(group_pattern=r"(part_\d+)"))
    Manifest("segmentation", CLASSES, items).write(root / "manifest.jsonl")
    return root
