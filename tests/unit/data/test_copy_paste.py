"""Pasted defects: with their labels, without a step at the seam, over no other defect."""

from typing import Any

import cv2
import numpy as np
import pytest

from data.copy_paste import FEATHER_PX, paste_defect


def source(dtype: Any, channels: int) -> tuple[Any, Any]:
    """Return a frame at a third of full scale with one dark defect of the second class."""
    mask = np.zeros((80, 80, 2), np.uint8)
    cv2.circle(plane := mask[:, :, 1].copy(), (40, 30), 7, 1, -1)
    mask[:, :, 1] = plane
    top = np.iinfo(dtype).max
    pixels = np.where(plane, top // 6, top // 3).astype(dtype)
    return np.repeat(pixels[:, :, None], channels, axis=2), mask


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_defect_keeps_class_size_and_contrast_and_its_seam_is_smooth(
    dtype: Any, channels: int
) -> None:
    top = np.iinfo(dtype).max
    pixels = np.full((60, 60, channels), top // 2, dtype)
    mask = np.zeros((60, 60, 2), np.uint8)
    from_pixels, from_mask = source(dtype, channels)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        seen, labels, covered = paste_defect(pixels, mask, from_pixels, from_mask, rng)
        assert covered is not None
        assert (seen.dtype, seen.shape) == (pixels.dtype, pixels.shape)
        np.testing.assert_array_equal(labels[:, :, 1], covered)
        assert not labels[:, :, 0].any()
        assert covered.sum() == from_mask.sum()
        # Full scale is at one half here and at one third there; the defect is a sixth darker.
        assert np.abs(seen[covered] / top - (1 / 2 - 1 / 6)).max() < 0.01
        assert (np.abs(seen[~covered] / top - 1 / 2) < 0.01).all()
        untouched = cv2.dilate(covered.astype(np.uint8), np.ones((2 * FEATHER_PX + 1,) * 2)) == 0
        assert (seen[untouched] == top // 2).all()
    assert not mask.any()
    assert (pixels == top // 2).all()


def test_no_other_defect_is_covered_and_where_there_is_no_room_nothing_is_pasted() -> None:
    from_pixels, from_mask = source(np.uint8, 1)
    mask = np.zeros((60, 60, 2), np.uint8)
    mask[:, 30:34, 0] = 1
    pixels = np.full((60, 60, 1), 90, np.uint8)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        seen, labels, covered = paste_defect(pixels, mask, from_pixels, from_mask, rng)
        np.testing.assert_array_equal(labels[:, :, 0], mask[:, :, 0])
        assert (seen[mask[:, :, 0] == 1] == 90).all()
        if covered is not None:
            assert not (covered & (mask[:, :, 0] == 1)).any()
    small = (pixels[:20, :20], mask[:20, :20], from_pixels, from_mask)
    assert paste_defect(*small, np.random.default_rng(0))[2] is None
    full = np.ones_like(mask)
    assert paste_defect(pixels, full, from_pixels, from_mask, np.random.default_rng(0))[2] is None
