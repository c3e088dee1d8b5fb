"""Which frames go into which step."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data import Frame
from models import Preprocessing
from training.batches import collate, plan_epoch

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
