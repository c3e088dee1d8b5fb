import random
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import SPLIT_NAMES, Item, LayoutError, SplitSpec, assign_splits

PARTS = r"part_(\d+)"
SIZES = st.lists(st.tuples(st.integers(1, 5), st.booleans()), min_size=3, max_size=40)


def frames_of(make_item: Callable[..., Item], parts: list[tuple[int, bool]]) -> list[Item]:
    return [
        make_item(f"part_{part}_frame_{frame}.png", defective=defective)
        for part, (frames, defective) in enumerate(parts)
        for frame in range(frames)
    ]


@given(parts=SIZES, seed=st.integers(0, 1000))
def test_no_part_is_both_learned_and_judged(
    make_item: Callable[..., Item], parts: list[tuple[int, bool]], seed: int
) -> None:
    items = assign_splits(frames_of(make_item, parts), SplitSpec(seed=seed, group_pattern=PARTS))
    splits_of_group: dict[str | None, set[str | None]] = {}
    for item in items:
        assert item.group == item.name.split("_")[1]
        splits_of_group.setdefault(item.group, set()).add(item.split)
    assert all(len(splits) == 1 for splits in splits_of_group.values())


@given(parts=SIZES, seed=st.integers(0, 1000), order=st.integers(0, 1000))
def test_the_split_does_not_depend_on_the_order_of_the_items(
    make_item: Callable[..., Item], parts: list[tuple[int, bool]], seed: int, order: int
) -> None:
    spec = SplitSpec(seed=seed, group_pattern=PARTS)
    items = frames_of(make_item, parts)
    shuffled = list(items)
    random.Random(order).shuffle(shuffled)  # noqa: S311 - no secret.
    expected = {item.name: item.split for item in assign_splits(items, spec)}
    assert {item.name: item.split for item in assign_splits(shuffled, spec)} == expected


@given(parts=SIZES, seed=st.integers(0, 1000))
def test_three_groups_of_a_kind_reach_every_split(
    make_item: Callable[..., Item], parts: list[tuple[int, bool]], seed: int
) -> None:
    items = assign_splits(frames_of(make_item, parts), SplitSpec(seed=seed, group_pattern=PARTS))
    for kind in (True, False):
        groups = {item.group for item in items if item.is_defective is kind}
        splits = {item.split for item in items if item.is_defective is kind}
        assert len(splits) == min(3, len(groups))
    assert {item.split for item in items} == set(SPLIT_NAMES)


@given(good=st.integers(7, 80), defective=st.integers(7, 80), seed=st.integers(0, 1000))
def test_shares_hold_within_one_group_for_good_and_for_defective_frames(
    make_item: Callable[..., Item], good: int, defective: int, seed: int
) -> None:
    spec = SplitSpec(seed=seed)
    parts = [(1, False)] * good + [(1, True)] * defective
    items = assign_splits(frames_of(make_item, parts), spec)
    for kind, count in ((False, good), (True, defective)):
        found = Counter(item.split for item in items if item.is_defective is kind)
        for split in SPLIT_NAMES:
            # Seven groups are the fewest of which 15 % is a whole one.
            assert abs(found[split] - spec.share(split) * count) <= 1


def test_another_seed_is_another_split(make_item: Callable[..., Item]) -> None:
    items = frames_of(make_item, [(1, False)] * 30)
    splits = {
        tuple(item.split for item in assign_splits(items, SplitSpec(seed=seed)))
        for seed in range(4)
    }
    assert len(splits) == 4


def test_a_share_of_zero_leaves_the_split_empty(make_item: Callable[..., Item]) -> None:
    spec = SplitSpec(train=0.8, calibration=0.2, test=0.0)
    items = assign_splits(frames_of(make_item, [(1, False)] * 10), spec)
    assert Counter(item.split for item in items) == {"train": 8, "calibration": 2}


def test_a_part_with_one_defective_frame_is_dealt_as_defective(
    make_item: Callable[..., Item],
) -> None:
    items = [
        make_item(f"part_{part}_frame_{frame}", defective=frame == 0)
        for part in range(20)
        for frame in range(2)
    ]
    found = assign_splits(items, SplitSpec(group_pattern=PARTS))
    assert Counter(item.split for item in found if item.is_defective) == Counter(
        item.split for item in found if not item.is_defective
    )


def test_a_name_without_a_part_is_named(make_item: Callable[..., Item]) -> None:
    items = [*frames_of(make_item, [(1, False)] * 4), make_item("stray.png")]
    with pytest.raises(LayoutError) as caught:
        assign_splits(items, SplitSpec(group_pattern=PARTS))
    assert (caught.value.code, caught.value.file) == ("group_pattern_mismatch", "stray.png")


@pytest.mark.parametrize("parts", [[(4, False)], [(2, True), (2, False)]])
def test_too_few_parts_to_keep_the_splits_apart_are_refused(
    make_item: Callable[..., Item], parts: list[tuple[int, bool]]
) -> None:
    with pytest.raises(LayoutError) as caught:
        assign_splits(frames_of(make_item, parts), SplitSpec(group_pattern=PARTS))
    assert caught.value.code == "too_few_groups"


@pytest.mark.parametrize("pattern", ["part_[0-9", "part_[0-9]+"])
def test_a_pattern_that_can_not_name_a_part_is_refused(pattern: str) -> None:
    with pytest.raises(LayoutError) as caught:
        SplitSpec(group_pattern=pattern)
    assert caught.value.code == "group_pattern_invalid"


@pytest.mark.parametrize("shares", [(0.5, 0.5, 0.5), (1.2, -0.1, -0.1), (0.0, 0.5, 0.5)])
def test_shares_that_are_none_are_refused(shares: tuple[float, float, float]) -> None:
    with pytest.raises(LayoutError) as caught:
        SplitSpec(*shares)
    assert caught.value.code == "split_shares"
