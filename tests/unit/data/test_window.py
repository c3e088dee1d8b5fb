"""Windows: where they lie, and that pixels and labels stay together when they are turned."""

from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import CropSpec
from data.window import cut_window


def bright_labels(dtype: Any, channels: int = 1) -> tuple[Any, Any]:
    """Return a frame whose labelled pixels are exactly its bright ones; some touch the edge."""
    mask = np.zeros((90, 120), np.uint8)
    cv2.circle(mask, (30, 40), 9, 1, -1)
    cv2.rectangle(mask, (80, 0), (99, 12), 1, -1)
    cv2.rectangle(mask, (110, 60), (119, 89), 1, -1)
    pixels = np.where(mask, np.iinfo(dtype).max, 0).astype(dtype)
    return np.repeat(pixels[:, :, None], channels, axis=2), mask[:, :, None]


def test_windows_reach_every_corner_of_a_frame(make_item: Any) -> None:
    pixels = np.arange(40 * 40, dtype=np.uint16).reshape(40, 40, 1)
    mask = np.zeros((40, 40, 1), np.uint8)
    seen = set()
    for seed in range(400):
        window, _ = cut_window(
            pixels, [mask], CropSpec(height_px=36, width_px=36), np.random.default_rng(seed)
        )
        seen.add(int(window[0, 0, 0]))
    assert seen == {40 * y + x for y in range(5) for x in range(5)}


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("crop", [None, CropSpec(height_px=64, width_px=48)])
def test_turned_pixels_and_labels_stay_together_up_to_the_edge(
    dtype: Any, channels: int, crop: CropSpec | None
) -> None:
    pixels, mask = bright_labels(dtype, channels)
    top = np.iinfo(dtype).max
    for seed in range(25):
        seen, (labels,) = cut_window(
            pixels, [mask], crop, np.random.default_rng(seed), rotation_deg=30
        )
        assert (seen.dtype, seen.shape[:2]) == (pixels.dtype, labels.shape[:2])
        marked = labels[:, :, 0]
        assert set(np.unique(marked)) <= {0, 1}
        # Brightness is mixed from the four pixels around a place, which the nearest one's label
        # does not tell apart; two pixels further in or out, and in from the window's edge, it must
        # be the label's.
        kernel = np.ones((5, 5), np.uint8)
        edge = {"borderType": cv2.BORDER_CONSTANT}
        inside = cv2.erode(marked, kernel, **edge, borderValue=0) == 1
        outside = cv2.dilate(marked, kernel, **edge, borderValue=1) == 0
        assert (seen[inside] > 0.99 * top).all()
        assert (seen[outside] < 0.01 * top).all()


def test_no_black_border_appears_where_a_frame_is_turned() -> None:
    pixels = np.full((60, 80, 1), 200, np.uint8)
    mask = np.zeros((60, 80, 1), np.uint8)
    for seed in range(20):
        seen, _ = cut_window(pixels, [mask], None, np.random.default_rng(seed), rotation_deg=45)
        assert (seen == 200).all()


def test_a_turned_window_is_filled_from_the_frame_around_it() -> None:
    # Each pixel says where it lies: mirrored ones would repeat a place.
    rows, columns = np.mgrid[0:200, 0:200]
    pixels = np.stack([rows, columns, 0 * rows], axis=2).astype(np.uint16) * 100
    mask = np.zeros((200, 200, 1), np.uint8)
    mask[100, 100] = 1
    crop = CropSpec(height_px=40, width_px=40)
    for seed in range(20):
        seen, _ = cut_window(
            pixels, [mask], crop, np.random.default_rng(seed), wish="defect", rotation_deg=30
        )
        steps = np.hypot(*(np.diff(seen[:, :, k].astype(float), axis=0) for k in (0, 1)))
        np.testing.assert_allclose(steps, 100, atol=8)


@given(st.integers(0, 2**20), st.integers(0, 89), st.integers(0, 119))
def test_a_window_on_a_defect_shows_it_however_it_is_turned(seed: int, y: int, x: int) -> None:
    mask = np.zeros((90, 120, 1), np.uint8)
    mask[y, x] = 1
    pixels = mask * 255
    crop = CropSpec(height_px=32, width_px=32)
    _, (seen,) = cut_window(
        pixels, [mask], crop, np.random.default_rng(seed), wish="defect", rotation_deg=45
    )
    assert seen.any()


@given(st.integers(0, 2**20))
def test_a_clean_window_avoids_every_defect_where_it_can(seed: int) -> None:
    mask = np.zeros((90, 120, 1), np.uint8)
    mask[:, 40:] = 1
    crop = CropSpec(height_px=32, width_px=38)
    _, (seen,) = cut_window(
        mask * 255, [mask], crop, np.random.default_rng(seed), wish="clean", rotation_deg=45
    )
    assert not seen.any()
