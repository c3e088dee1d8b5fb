from concurrent.futures import ThreadPoolExecutor
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
        varied, (moved,) = augmentation.apply(pixels, [mask], np.random.default_rng(seed))
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
        varied, (moved,) = augmentation.apply(pixels, [mask], np.random.default_rng(seed))
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
        varied, _ = augmentation.apply(pixels, [mask], np.random.default_rng(seed))
        assert len(np.unique(varied)) > 800


def test_light_and_noise_change_pixels_and_never_the_mask() -> None:
    pixels, mask = frame(np.uint8)
    augmentation = Augmentation(AugmentationSpec(flips=False))
    changed = 0
    for seed in range(20):
        varied, (moved,) = augmentation.apply(pixels, [mask], np.random.default_rng(seed))
        np.testing.assert_array_equal(moved, mask)
        changed += not np.array_equal(varied, pixels)
    # Three choices of one half leave one frame in eight as it is.
    assert 10 <= changed < 20


def test_nothing_asked_for_is_nothing_done() -> None:
    pixels, mask = frame(np.uint16)
    varied, (moved,) = Augmentation(OFF).apply(pixels, [mask], np.random.default_rng(0))
    np.testing.assert_array_equal(varied, pixels)
    np.testing.assert_array_equal(moved, mask)


def test_unknown_options_are_refused() -> None:
    with pytest.raises(ValidationError):
        AugmentationSpec.model_validate({"rotate": True})
    with pytest.raises(ValidationError):
        CropSpec.model_validate({"height_px": 64, "width_px": 64, "defect_rate": 1.5})


EVERYTHING = AugmentationSpec(gradient=0.2, blur_px=2.0, shot_noise=0.02)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_variation_keeps_shape_dtype_and_levels_and_repeats(
    dtype: Any, channels: int
) -> None:
    pixels, mask = frame(dtype, channels)
    instances = mask[:, :, :1].astype(np.uint16) * 700
    augmentation = Augmentation(EVERYTHING)
    for seed in range(12):
        varied, moved = augmentation.apply(pixels, [mask, instances], np.random.default_rng(seed))
        assert (varied.shape, varied.dtype) == (pixels.shape, pixels.dtype)
        np.testing.assert_array_equal(moved[1], moved[0][:, :, :1].astype(np.uint16) * 700)
        again, _ = Augmentation(EVERYTHING).apply(
            pixels, [mask, instances], np.random.default_rng(seed)
        )
        np.testing.assert_array_equal(varied, again)
        if dtype == np.uint16:
            assert len(np.unique(varied)) > 256


def test_several_threads_may_vary_frames_with_one_object() -> None:
    pixels, mask = frame(np.uint8)
    augmentation = Augmentation(EVERYTHING)

    def vary(seed: int) -> Any:
        return augmentation.apply(pixels, [mask], np.random.default_rng(seed))[0]

    expected = [vary(seed) for seed in range(40)]
    with ThreadPoolExecutor(4) as threads:
        for one, other in zip(threads.map(vary, range(40)), expected, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_gradient_lights_a_grey_frame_evenly_from_dark_to_bright(dtype: Any) -> None:
    top = np.iinfo(dtype).max
    grey = np.full((64, 64, 1), top // 2, dtype)
    augmentation = Augmentation(OFF.model_copy(update={"gradient": 0.2}))
    seen = 0
    for seed in range(20):
        varied, _ = augmentation.apply(
            grey, [np.zeros((64, 64, 1), np.uint8)], np.random.default_rng(seed)
        )
        lit = varied.astype(float) / (top // 2)
        assert 0.79 <= lit.min() <= lit.max() <= 1.21
        # Neighbouring pixels differ by the slope and by rounding, never by a step.
        assert np.abs(np.diff(lit[:, :, 0], axis=0)).max() < 0.4 / 64 * 1.5 + 2 / (top // 2)
        seen += lit.max() - lit.min() > 0.02
    assert 3 <= seen < 20


def test_shot_noise_grows_with_the_signal_and_stays_within_its_deviation() -> None:
    spec = OFF.model_copy(update={"shot_noise": 0.02})
    deviations: dict[int, list[float]] = {level: [] for level in (4000, 60000)}
    for level, found in deviations.items():
        plain = np.full((64, 64, 1), level, np.uint16)
        for seed in range(20):
            varied, _ = Augmentation(spec).apply(
                plain, [np.zeros((64, 64, 1), np.uint8)], np.random.default_rng(seed)
            )
            if not np.array_equal(varied, plain):
                found.append(varied.std() / 65535)
    assert max(deviations[60000]) < 0.021
    assert np.mean(deviations[60000]) > 0.002


def test_motion_and_defocus_move_no_defect_away_from_its_label() -> None:
    dot = np.zeros((41, 41, 1), np.uint16)
    dot[20, 20] = 65535
    augmentation = Augmentation(OFF.model_copy(update={"blur_px": 3.0}))
    for seed in range(30):
        varied, _ = augmentation.apply(
            dot, [np.zeros((41, 41, 1), np.uint8)], np.random.default_rng(seed)
        )
        y, x = np.nonzero(varied[:, :, 0])
        weights = varied[y, x, 0].astype(float)
        assert abs(np.average(y, weights=weights) - 20) < 0.02
        assert abs(np.average(x, weights=weights) - 20) < 0.02


@pytest.mark.parametrize(
    "wish",
    [
        {"rotation_deg": 46},
        {"gradient": 0.6},
        {"blur_px": 6},
        {"shot_noise": 1},
    ],
)
def test_a_variation_beyond_its_range_is_refused(wish: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        AugmentationSpec.model_validate(wish)
