"""Which frames go into which step."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import Frame, GoodFrame, Item, Polygon, PolygonLabels, SamplingSpec
from models import Preprocessing
from models.spec import NormSpec
from training.batches import (
    collate,
    count_steps,
    plan_draws,
    plan_epoch,
    plan_steps,
    split_evenly,
    with_distances,
)
from training.config import CropResolution, DataSection, NativeResolution, RunConfig

SIZES = st.lists(st.sampled_from([(32, 32), (32, 64), (64, 64)]), min_size=1, max_size=30)


@given(SIZES, st.integers(1, 5), st.integers(0, 3), st.integers(0, 3))
def test_every_frame_is_seen_once_an_epoch(
    sizes: list[tuple[int, int]], batch_size: int, seed: int, epoch: int
) -> None:
    batches = plan_epoch(sizes, batch_size, seed=seed, epoch=epoch)
    assert sorted(index for batch in batches for index in batch) == list(range(len(sizes)))
    assert max(len(batch) for batch in batches) <= batch_size
    assert batches == plan_epoch(sizes, batch_size, seed=seed, epoch=epoch)


@given(SIZES, st.integers(1, 5))
def test_at_most_the_left_over_frames_are_mixed(
    sizes: list[tuple[int, int]], batch_size: int
) -> None:
    batches = plan_epoch(sizes, batch_size, seed=0, epoch=0)
    mixed = [index for batch in batches for index in batch if len({sizes[i] for i in batch}) > 1]
    left_over = sum(sizes.count(size) % batch_size for size in set(sizes))
    assert len(mixed) <= left_over


@given(SIZES)
def test_the_number_of_steps_is_the_same_every_epoch(sizes: list[tuple[int, int]]) -> None:
    counts = {len(plan_epoch(sizes, 2, seed=0, epoch=epoch)) for epoch in range(5)}
    assert len(counts) == 1


def test_epochs_differ() -> None:
    sizes = [(32, 32)] * 20
    assert plan_epoch(sizes, 2, seed=0, epoch=0) != plan_epoch(sizes, 2, seed=0, epoch=1)


def test_a_smaller_frame_is_padded_and_marked_invalid_there() -> None:
    preprocessing = Preprocessing(in_channels=1, bit_depth=8, mean=(0.0,), std=(1.0,), stride_px=16)
    large = Frame("large", np.full((40, 20, 1), 7, np.uint8), np.ones((40, 20, 2), np.uint8))
    small = Frame("small", np.full((10, 30, 1), 9, np.uint8), np.ones((10, 30, 2), np.uint8))
    batch = collate([large, small], preprocessing)
    assert batch.images.shape == (2, 1, 48, 32)
    assert batch.targets.shape == (2, 2, 48, 32)
    assert batch.valid.sum(dim=(1, 2, 3)).tolist() == [40 * 20, 10 * 30]
    assert batch.targets.sum(dim=(1, 2, 3)).tolist() == [2 * 40 * 20, 2 * 10 * 30]
    assert bool((batch.images[1] == 9.0).all())


def frames_of(sizes: list[tuple[int, int]], defective_every: int) -> list[Item]:
    pit = PolygonLabels((Polygon("pit", ((1, 1), (5, 1), (1, 5))),))
    return [
        Item(
            name=str(index),
            key=str(index),
            file=f"blobs/{index}",
            sha256=hashlib.sha256(str(index).encode()).hexdigest(),
            width=width,
            height=height,
            channels=1,
            bit_depth=8,
            group=None,
            split="train",
            labels=GoodFrame() if index % defective_every else pit,
        )
        for index, (height, width) in enumerate(sizes)
    ]


CROPS = CropResolution(mode="crop", height_px=64, width_px=64)


@pytest.mark.parametrize("resolution", [NativeResolution(), CROPS])
def test_batches_at_a_stated_rate_hold_it_along_the_whole_epoch(
    resolution: NativeResolution | CropResolution,
) -> None:
    items = frames_of([(64, 64)] * 60, defective_every=10)
    config = RunConfig(
        data=DataSection(manifest=Path("m"), root=Path()),
        sampling=SamplingSpec(defect_rate=0.5),
        resolution=resolution,
    )
    batches = plan_draws(items, config, epoch=1)
    assert {sum(draw.wish == "defect" for draw in batch) for batch in batches} == {1}
    assert {draw.index for batch in batches for draw in batch} == set(range(60))


def test_sampled_epochs_of_several_sizes_have_equally_many_steps() -> None:
    sizes = [(32, 32), (32, 64), (64, 64)] * 9
    config = RunConfig(
        data=DataSection(manifest=Path("m"), root=Path()),
        sampling=SamplingSpec(defect_rate=0.6),
        batch_size=3,
    )
    items = frames_of(sizes, defective_every=5)
    counts = {len(plan_draws(items, config, epoch)) for epoch in range(6)}
    assert counts == {count_steps(items, config)[0]}


@given(st.integers(1, 40), st.integers(1, 3), st.integers(1, 9))
def test_the_steps_of_an_epoch_hold_every_batch_once_in_order_and_differ_by_one_at_most(
    frames: int, batch_size: int, accumulation_steps: int
) -> None:
    items = frames_of([(64, 64)] * frames, defective_every=2)
    config = RunConfig(
        data=DataSection(manifest=Path("m"), root=Path()),
        batch_size=batch_size,
        accumulation_steps=accumulation_steps,
    )
    steps = plan_steps(items, config, epoch=3)
    lengths = {len(step) for step in steps}
    assert [batch for step in steps for batch in step] == plan_draws(items, config, epoch=3)
    assert max(lengths) <= accumulation_steps
    assert max(lengths) - min(lengths) <= 1
    assert len(steps) == count_steps(items, config)[0]


@given(st.integers(0, 30), st.integers(1, 7))
def test_a_split_into_more_parts_than_there_are_things_leaves_the_last_parts_empty(
    things: int, parts: int
) -> None:
    split = split_evenly(range(things), parts)
    assert len(split) == parts
    assert [thing for part in split for thing in part] == list(range(things))
    lengths = [len(part) for part in split]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] - lengths[-1] <= 1


def config_of(**fields: Any) -> RunConfig:
    return RunConfig(data=DataSection(manifest=Path("m"), root=Path()), batch_size=1, **fields)


@given(st.integers(1, 30), st.integers(1, 4), st.integers(1, 4))
def test_several_devices_take_the_steps_of_one_that_accumulates(
    frames: int, devices: int, accumulation_steps: int
) -> None:
    items = frames_of([(64, 64)] * frames, defective_every=2)
    shared = config_of(devices=devices, accumulation_steps=accumulation_steps)
    alone = config_of(accumulation_steps=devices * accumulation_steps)
    assert plan_steps(items, shared, epoch=2) == plan_steps(items, alone, epoch=2)


@given(st.integers(1, 30), st.integers(2, 4), st.integers(1, 4))
def test_in_lockstep_every_device_has_as_many_batches_and_the_fewest_are_left_out(
    frames: int, devices: int, accumulation_steps: int
) -> None:
    items = frames_of([(64, 64)] * frames, defective_every=2)
    norm = NormSpec(kind="cbn", ranks="pooled")
    pooled = config_of(devices=devices, accumulation_steps=accumulation_steps, norm=norm)
    steps = plan_steps(items, pooled, epoch=2)
    assert all(len(step) % devices == 0 for step in steps)
    assert all(0 < len(step) <= devices * accumulation_steps for step in steps)
    assert sum(len(step) for step in steps) == frames - frames % devices


def test_distance_maps_end_where_the_frame_does() -> None:
    preprocessing = Preprocessing(in_channels=1, bit_depth=8, mean=(0.0,), std=(1.0,), stride_px=16)
    mask = np.zeros((20, 16, 1), np.uint8)
    # Its corner is the frame's, where no outline is.
    mask[15:, :5] = 1
    small = Frame("small", np.zeros((20, 16, 1), np.uint8), mask)
    large = Frame("large", np.zeros((32, 32, 1), np.uint8), np.zeros((32, 32, 1), np.uint8))
    maps = with_distances(collate([small, large], preprocessing), reach_px=8.0).distances
    assert maps is not None
    assert maps[0, 0, 19, 0] == -4 / 8
    assert maps[0, 0, 12, 0] == 3 / 8
    assert not maps[0, :, 20:].any()
    assert not maps[0, :, :, 16:].any()
    assert bool((maps[1] == 1).all())
