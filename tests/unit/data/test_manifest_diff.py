import dataclasses
from typing import Any

import pytest

from data import Box, BoxLabels, GoodFrame, Item, Manifest, MaskLabels
from data.manifest_diff import Move, diff_manifests
from tests.unit.data.conftest import ItemFactory

CLASSES = ("pit", "scratch")


def version(*items: Item, classes: tuple[str, ...] = CLASSES) -> Manifest:
    return Manifest("segmentation", classes, items)


def changed(item: Item, **changes: Any) -> Item:
    return dataclasses.replace(item, **changes)


@pytest.fixture
def frames(make_item: ItemFactory) -> dict[str, Item]:
    items = [make_item(name, defective=name in "ab") for name in "abcd"]
    return {item.name: changed(item, split="train") for item in items}


def test_a_version_does_not_differ_from_itself(frames: dict[str, Item]) -> None:
    assert diff_manifests(version(*frames.values()), version(*frames.values())).is_empty


def test_added_removed_renamed_relabelled_and_moved_frames_are_told_apart(
    frames: dict[str, Item], make_item: ItemFactory
) -> None:
    older = version(*frames.values())
    newer = version(
        changed(frames["a"], labels=GoodFrame()),
        changed(frames["b"], name="lot2/b", key="lot2/b", split="test"),
        changed(frames["c"], labels=BoxLabels((Box("pit", 1, 1, 2, 2),)), split="calibration"),
        make_item("e"),
        classes=("pit", "stain"),
    )
    diff = diff_manifests(older, newer)
    assert (diff.added, diff.removed) == (("e",), ("d",))
    assert diff.renamed == (("b", "lot2/b"),)
    assert diff.relabelled == ("a", "c")
    assert diff.moved == (Move("c", "train", "calibration"), Move("lot2/b", "train", "test"))
    assert (diff.classes_added, diff.classes_removed) == (("stain",), ("scratch",))
    back = diff_manifests(newer, older)
    assert (back.added, back.removed) == (diff.removed, diff.added)


def test_a_mask_says_something_else_when_the_classes_change_places(
    frames: dict[str, Item],
) -> None:
    mask = MaskLabels("blobs/m", "0" * 64, (1,), ((1, 9),))
    frame = changed(frames["a"], labels=mask)
    swapped = diff_manifests(version(frame), version(frame, classes=CLASSES[::-1]))
    assert swapped.relabelled == ("a",)
    longer = diff_manifests(version(frame), version(frame, classes=(*CLASSES, "stain")))
    assert longer.relabelled == ()


def test_the_same_mosaics_under_another_pattern_are_not_the_same_frames(
    frames: dict[str, Item],
) -> None:
    items = [changed(item, channels=3) for item in frames.values()]
    ordinary = version(*items)
    one, other = (dataclasses.replace(ordinary, bayer=pattern) for pattern in ("RGGB", "GRBG"))
    for older, newer in ((one, other), (ordinary, one), (one, ordinary)):
        diff = diff_manifests(older, newer)
        assert not diff.is_empty
        assert diff.demosaiced_otherwise == tuple(sorted(frames))
    assert diff_manifests(one, one).is_empty
