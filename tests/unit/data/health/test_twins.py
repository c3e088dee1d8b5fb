import dataclasses
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from data import Manifest, decode_image
from data.health import check_health, measure_pixels
from data.health.twins import near_duplicates
from data.synthetic import draw_frame
from tests.unit.data.conftest import ItemFactory


def pairs_among(frames: list[Any], make_item: ItemFactory) -> list[tuple[int, int]]:
    """Near-duplicates where each frame is in another split than its neighbours."""
    items = [
        dataclasses.replace(
            make_item(str(index)),
            split=("train", "test")[index % 2],
            bit_depth=8 * frame.dtype.itemsize,
        )
        for index, frame in enumerate(frames)
    ]
    measured = {
        item.sha256: measure_pixels(frame) for item, frame in zip(items, frames, strict=True)
    }
    return near_duplicates(items, measured)


def product(count: int, *, width: int = 640, height: int = 512) -> list[Any]:
    return [
        draw_frame(seed, width_px=width, height_px=height, product_seed=5).pixels
        for seed in range(count)
    ]


def encoded(frame: Any, quality: int) -> Any:
    return cv2.imdecode(cv2.imencode(".jpg", frame, [1, quality])[1], cv2.IMREAD_UNCHANGED)


@pytest.mark.parametrize("kind", ["jpeg", "half", "noise", "darker", "sixteen", "twelve", "colour"])
def test_a_frame_saved_or_taken_twice_is_known_again(kind: str, make_item: ItemFactory) -> None:
    frame = product(1)[0]
    noise = np.random.default_rng(0).normal(0, 2, frame.shape)
    copies: dict[str, Any] = {
        "jpeg": lambda: encoded(frame, 75),
        "half": lambda: cv2.resize(frame, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
        "noise": lambda: np.clip(frame + noise, 0, 255).astype(np.uint8),
        "darker": lambda: (frame * 0.8).astype(np.uint8),
        "sixteen": lambda: frame.astype(np.uint16) * 257,
        "twelve": lambda: frame.astype(np.uint16) * 16,
        "colour": lambda: np.repeat(frame[:, :, None], 3, axis=2),
    }
    assert pairs_among([frame, copies[kind]()], make_item) == [(0, 1)]


def test_frames_of_one_product_are_no_duplicates(make_item: ItemFactory) -> None:
    assert pairs_among(product(40, width=320, height=256), make_item) == []


def test_frames_of_a_bare_surface_under_one_lamp_are_no_duplicates(make_item: ItemFactory) -> None:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[-1:1:400j, -1:1:500j]
    light = 150 * (1 - 0.25 * (x * x + y * y))
    frames = [
        np.clip(light + rng.normal(0, 1.5, light.shape), 0, 255).astype(np.uint8) for _ in range(40)
    ]
    assert pairs_among(frames, make_item) == []
    assert pairs_among([frames[0], encoded(frames[0], 95)], make_item) == [(0, 1)]


def test_copies_within_one_split_are_no_leak(make_item: ItemFactory) -> None:
    frame = product(1)[0]
    items = [dataclasses.replace(make_item(name), split="train") for name in "ab"]
    measured = {
        items[0].sha256: measure_pixels(frame),
        items[1].sha256: measure_pixels(encoded(frame, 90)),
    }
    manifest = Manifest("segmentation", ("pit",), tuple(items))
    codes = {finding.code for finding in check_health(manifest, measured=measured)}
    assert not codes & {"near_duplicates_across_splits", "identical_frames"}


@pytest.mark.slow
@pytest.mark.datasets
def test_of_real_sets_only_the_copies_are_named(datasets_dir: Path, make_item: ItemFactory) -> None:
    # Ball screws look alike, hours apart at the same place; the weld set holds two photos twice.
    expected = {"bsdata/data/*.jpg": 0, "weld_seg/data/*/images/*.jpg": 2}
    for pattern, count in expected.items():
        paths = sorted(datasets_dir.glob(pattern))
        frames = [decode_image(path.read_bytes(), name=path.name).pixels for path in paths]
        # Every frame is compared with every other one in a split of its own.
        items = [make_item(path.name) for path in paths]
        measured = {i.sha256: measure_pixels(f) for i, f in zip(items, frames, strict=True)}
        found = set()
        for bit in range(len(items).bit_length()):
            dealt = [
                dataclasses.replace(item, split="test" if index >> bit & 1 else "train")
                for index, item in enumerate(items)
            ]
            found |= set(near_duplicates(dealt, measured))
        assert len(found) == count, pattern
