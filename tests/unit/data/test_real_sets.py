"""The real sets hold what the README.md of each says, and all of it is read.

Counts stand in the README's own words beside each assertion; what is not stated there (labels by
class, for example) is not asserted. DeepPCB has a format of its own.
"""

from pathlib import Path

import pytest

from data import BoxLabels, MaskLabels, PolygonLabels, import_folder
from data.labels import shapes

pytestmark = pytest.mark.datasets


def test_the_ball_screw_set_is_read_whole(datasets_dir: Path) -> None:
    imported = import_folder(datasets_dir / "bsdata", unlabelled="good", root=datasets_dir)
    assert imported.classes == ("Pitting",)
    assert imported.problems == ()
    items = imported.items
    # "185 images: 35 high-resolution (>2000 px) annotated, 75 sequence annotated, 75 sequence
    # clean; 155 polygons"; "KGT* images (…, all annotated)". Four of them are a little narrower or
    # wider than the range of widths that it gives, so that range is not asserted.
    assert len(items) == 185
    large = [item for item in items if item.width > 2000]
    assert len(large) == 35
    assert all("KGT" in item.name and item.is_defective for item in large)
    assert sum(item.is_defective for item in items if item not in large) == 75
    assert sum(not item.is_defective for item in items) == 75
    assert all(isinstance(item.labels, PolygonLabels) for item in items if item.is_defective)
    assert sum(len(shapes(item.labels)) for item in items) == 155


def test_clean_frames_without_a_label_are_not_taken_as_good_unasked(datasets_dir: Path) -> None:
    imported = import_folder(datasets_dir / "bsdata")
    assert [problem.code for problem in imported.problems] == ["missing_label"] * 75


def test_the_weld_set_is_read_whole(datasets_dir: Path) -> None:
    imported = import_folder(datasets_dir / "weld_seg", classes=["defect"])
    assert imported.problems == ()
    # "118 photos", "1080..2048 px (29 with a side >= 2000)", "0 background, 1 defect", "every image
    # has a defect".
    assert len(imported.items) == 118
    sizes = [(item.width, item.height) for item in imported.items]
    assert sum(max(size) >= 2000 for size in sizes) == 29
    assert max(max(size) for size in sizes) == 2048
    masks = [item.labels for item in imported.items if isinstance(item.labels, MaskLabels)]
    assert [mask.values for mask in masks] == [(1,)] * 118


def test_the_boards_are_read_with_every_box(datasets_dir: Path) -> None:
    imported = import_folder(datasets_dir / "hripcb")
    assert imported.problems == ()
    # "18 images, 66 boxes", "3-5 per image", "Boards here: 01, 04, 05, 07". None is as small as the
    # 2240x2016 px that it names, so the sizes are not asserted.
    items = imported.items
    assert len(items) == 18
    boxes = [item.labels.boxes for item in items if isinstance(item.labels, BoxLabels)]
    assert sum(len(found) for found in boxes) == 66
    assert {len(found) for found in boxes} <= {3, 4, 5}
    boards = {item.name.rpartition("/")[2].partition("_")[0] for item in items}
    assert boards == {"01", "04", "05", "07"}
