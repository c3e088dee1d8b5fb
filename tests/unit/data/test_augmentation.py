from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from data import AugmentationSpec, CropSpec
from data.augmentation import Augmentation

OFF = AugmentationSpec(flips=False, light=False, noise=False)
FLIPS = OFF.model_copy(update={"flips": True})


def frame(dtype: Any, channels: int = 1, classes: int = 2) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, np.iinfo(dtype).max, (24, 40, channels), dtype=dtype)
    mask = rng.integers(0, 2, (24, 40, classes), dtype=np.uint8)
    return pixels, mask


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("classes", [1, 3, 6])
def test_shapes_and_dtypes_stay_whatever_the_frame(dtype: Any, channels: int, classes: int) -> None:
    pixels, mask = frame(dtype, channels, classes)
    augmentation = Augmentation(AugmentationSpec())
    for seed in range(8):
        varied, moved = augmentation.apply(pixels, mask, np.random.default_rng(seed))
        assert (varied.shape, varied.dtype) == (pixels.shape, pixels.dtype)
        assert (moved.shape, moved.dtype) == (mask.shape, mask.dtype)
        assert set(np.unique(moved)) <= {0, 1}
        assert moved.sum() == mask.sum()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_mirroring_loses_no_bit_and_takes_the_mask_along(dtype: Any) -> None:
    pixels, mask = frame(dtype, channels=3)
    augmentation = Augmentation(FLIPS)
    seen = set()
    for seed in range(40):
        varied, moved = augmentation.apply(pixels, mask, np.random.default_rng(seed))
        for vertical in (1, -1):
            for horizontal in (1, -1):
                if np.array_equal(varied, pixels[::vertical, ::horizontal]):
                    seen.add((vertical, horizontal))
                    np.testing.assert_array_equal(moved, mask[::vertical, ::horizontal])
    assert len(seen) == 4, "each mirror is drawn on its own"


def test_16_bit_frames_keep_more_than_256_levels() -> None:
    pixels, mask = frame(np.uint16)
    augmentation = Augmentation(AugmentationSpec(flips=False))
    for seed in range(8):
        varied, _ = augmentation.apply(pixels, mask, np.random.default_rng(seed))
        assert len(np.unique(varied)) > 800


def test_light_and_noise_change_pixels_and_never_the_mask() -> None:
    pixels, mask = frame(np.uint8)
    augmentation = Augmentation(AugmentationSpec(flips=False))
    changed = 0
    for seed in range(20):
        varied, moved = augmentation.apply(pixels, mask, np.random.default_rng(seed))
        np.testing.assert_array_equal(moved, mask)
        changed += not np.array_equal(varied, pixels)
    # Three choices of one half leave one frame in eight as it is.
    assert 10 <= changed < 20


def test_nothing_asked_for_is_nothing_done() -> None:
    pixels, mask = frame(np.uint16)
    varied, moved = Augmentation(OFF).apply(pixels, mask, np.random.default_rng(0))
    np.testing.assert_array_equal(varied, pixels)
    np.testing.assert_array_equal(moved, mask)


def test_unknown_options_are_refused() -> None:
    with pytest.raises(ValidationError):
        AugmentationSpec.model_validate({"rotate": True})
    with pytest.raises(ValidationError):
        CropSpec.model_validate({"height_px": 64, "width_px": 64, "defect_rate": 1.5})
