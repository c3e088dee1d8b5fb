import dataclasses
from typing import Any

import pytest

from data import (
    SPLIT_NAMES,
    Box,
    BoxLabels,
    GoodFrame,
    Item,
    Manifest,
    Polygon,
    PolygonLabels,
    SplitName,
)
from data.health import MOST_EXAMPLES, check_health
from tests.unit.data.conftest import ItemFactory

MOVES: tuple[tuple[int, SplitName], ...] = ((1, "train"), (2, "test"))
CLASSES = ("pit", "scratch")


def square(class_name: str, side: float, left: float = 1) -> Polygon:
    right, bottom = left + side, 1 + side
    return Polygon(class_name, ((left, 1), (right, 1), (right, bottom), (left, bottom)))


def changed(items: list[Item], index: int, **changes: Any) -> None:
    items[index] = dataclasses.replace(items[index], **changes)


def codes(items: list[Item], **others: Any) -> list[str]:
    settings: dict[str, Any] = {"task": "segmentation", "classes": CLASSES} | others
    return [finding.code for finding in check_health(Manifest(items=tuple(items), **settings))]


@pytest.fixture
def items(make_item: ItemFactory) -> list[Item]:
    """Ten good and ten defective frames a split, both classes in each: nothing is wrong."""
    labels = PolygonLabels((square("pit", 6), square("scratch", 8, left=20)))
    return [
        dataclasses.replace(
            make_item(f"{split}_{kind}_{index}"),
            split=split,
            labels=labels if kind == "bad" else GoodFrame(),
        )
        for split in SPLIT_NAMES
        for kind in ("bad", "good")
        for index in range(10)
    ]


def test_a_healthy_version_has_no_finding(items: list[Item]) -> None:
    assert codes(items) == []


def test_each_planted_problem_is_found_and_nothing_else(items: list[Item]) -> None:
    pit = square("pit", 6)
    for index in range(10):
        # One split each without defects of a class, without defects, without good frames.
        changed(items, 40 + index, labels=PolygonLabels((pit,)))
    assert codes(items) == ["class_not_judged"]
    planted = [
        ("single_pixel_labels", PolygonLabels((pit, square("scratch", 1)))),
        ("defects_below_stride", PolygonLabels((pit, square("scratch", 3.9)))),
        ("labels_over_half_the_frame", PolygonLabels((pit, square("scratch", 47)))),
        ("boxes_for_segmentation", BoxLabels((Box("pit", 1, 1, 9, 9),))),
    ]
    for number, (code, labels) in enumerate(planted, start=1):
        changed(items, 20 + number, labels=labels)
        assert code in codes(items)
    changed(items, 30, width=4000)
    changed(items, 31, bit_depth=16)
    assert set(codes(items)) == {
        "class_not_judged",
        *(code for code, _ in planted),
        "odd_size",
        "odd_depth",
    }
    assert "boxes_for_segmentation" not in codes(items, task="detection")


def test_a_split_without_defects_is_an_error_and_comes_first(items: list[Item]) -> None:
    for index in range(40, 50):
        changed(items, index, labels=GoodFrame())
    assert codes(items) == ["split_without_defective", "class_not_judged"]
    for index in range(10, 20):
        changed(items, index, labels=items[0].labels)
    assert codes(items) == ["split_without_defective", "split_without_good", "class_not_judged"]


def test_rare_classes_are_named_with_their_counts(items: list[Item]) -> None:
    for index, item in enumerate(items):
        if item.is_defective and index % 10:
            changed(
                items,
                index,
                labels=PolygonLabels(tuple(square("pit", 6, left) for left in (1, 11, 21))),
            )
    few, imbalance = check_health(Manifest("segmentation", CLASSES, tuple(items)))
    assert (few.code, few.examples) == ("few_defects", ("scratch: 1",))
    assert (imbalance.code, imbalance.examples) == ("class_imbalance", ("scratch: 3",))


def test_frames_of_one_part_in_two_splits_are_suspected_by_their_names(
    items: list[Item], make_item: ItemFactory
) -> None:
    twins = [
        dataclasses.replace(make_item(f"lot7/part_012_{index}.png"), split=split)
        for index, split in MOVES
    ]
    runs = [
        dataclasses.replace(make_item(f"img_{index}.png"), split=split) for index, split in MOVES
    ]
    (finding,) = check_health(Manifest("segmentation", CLASSES, (*items, *twins, *runs)))
    assert finding.code == "parts_may_leak"
    assert finding.examples == ("lot7/part_012_1.png", "lot7/part_012_2.png")
    assert "group_pattern" in finding.hint


def test_examples_are_few_and_the_count_is_whole(items: list[Item]) -> None:
    for index, item in enumerate(items):
        if item.is_defective:
            changed(
                items, index, labels=BoxLabels((Box("pit", 1, 1, 9, 9), Box("pit", 20, 1, 9, 9)))
            )
    boxes = [
        f
        for f in check_health(Manifest("segmentation", CLASSES, tuple(items)))
        if f.code == "boxes_for_segmentation"
    ]
    assert (boxes[0].count, len(boxes[0].examples)) == (30, MOST_EXAMPLES)


def test_a_group_in_two_splits_is_an_error(items: list[Item]) -> None:
    for index in (0, 20):
        changed(items, index, group="part_7")
    (found,) = check_health(Manifest("segmentation", CLASSES, tuple(items)))
    assert (found.code, found.severity) == ("group_in_several_splits", "error")
    assert found.examples == ("part_7 (calibration, train)",)
    assert found.frames == (("calibration_bad_0", "train_bad_0"),)


def test_a_label_that_reaches_out_of_its_frame_is_an_error(items: list[Item]) -> None:
    pit, scratch = items[0].labels.polygons  # type: ignore[union-attr]
    changed(items, 0, labels=PolygonLabels((pit, scratch, square("pit", 6, left=58))))
    assert codes(items) == []
    changed(items, 0, labels=PolygonLabels((pit, scratch, square("pit", 6, left=59))))
    (found,) = check_health(Manifest("segmentation", CLASSES, tuple(items)))
    assert (found.code, found.severity) == ("labels_outside_frame", "error")


def test_the_same_bytes_twice_are_found_without_looking_at_pixels(items: list[Item]) -> None:
    changed(items, 40, sha256=items[0].sha256)
    assert codes(items) == ["identical_frames_across_splits"]
