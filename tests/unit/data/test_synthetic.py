from pathlib import Path

import cv2
import numpy as np
import pytest

from data import GoodFrame, import_folder
from data.surface import SurfaceSpec, draw_surface_spec
from data.synthetic import SyntheticFrame, draw_frame, write_dataset


def small(seed: int, *, defects: bool = True) -> SyntheticFrame:
    return draw_frame(seed, width_px=512, height_px=512, defects=defects)


@pytest.fixture(scope="module")
def frames() -> list[SyntheticFrame]:
    return [small(seed) for seed in range(40)]


def test_a_seed_is_a_frame() -> None:
    one, same, other = (draw_frame(seed, width_px=200, height_px=150) for seed in (5, 5, 6))
    np.testing.assert_array_equal(one.pixels, same.pixels)
    np.testing.assert_array_equal(one.mask, same.mask)
    assert one.pixels.shape == one.mask.shape == (150, 200)
    assert not np.array_equal(one.pixels, other.pixels)


def test_a_defective_frame_has_one_to_four_defects_whole_inside_it(
    frames: list[SyntheticFrame],
) -> None:
    seen = set()
    for frame in frames:
        regions = 0
        for value in (1, 2, 3):
            count, _, _, _ = cv2.connectedComponentsWithStats(
                (frame.mask == value).astype(np.uint8), connectivity=8
            )
            regions += count - 1
            seen |= {value} if count > 1 else set()
        assert 1 <= regions <= 4
        border = np.concatenate(
            [frame.mask[0], frame.mask[-1], frame.mask[:, 0], frame.mask[:, -1]]
        )
        assert not border.any()
    assert seen == {1, 2, 3}


def test_defects_have_the_sizes_that_are_promised(frames: list[SyntheticFrame]) -> None:
    for frame in frames:
        for value, (shortest, longest, thickest) in {
            1: (30, 600, 4),
            2: (4, 36, 36),
            3: (12, 110, 110),
        }.items():
            plane = np.pad((frame.mask == value).astype(np.uint8), 1)
            count, labels, stats, _ = cv2.connectedComponentsWithStats(plane)
            for region in range(1, count):
                width, height = stats[region, cv2.CC_STAT_WIDTH], stats[region, cv2.CC_STAT_HEIGHT]
                assert shortest <= np.hypot(width, height) <= longest * 1.42
                depth = cv2.distanceTransform((labels == region).astype(np.uint8), cv2.DIST_L2, 5)
                assert 2 * depth.max() <= thickest + 1


def test_a_good_frame_has_the_same_finish_and_an_empty_mask() -> None:
    good = small(3, defects=False)
    bad = small(3)
    assert not good.mask.any()
    changed = good.pixels != bad.pixels
    assert changed.any()
    # Only the neighbourhood of a defect differs: its flank or rim reaches a few pixels beyond it.
    around = cv2.dilate((bad.mask > 0).astype(np.uint8), np.ones((17, 17), np.uint8))
    assert not changed[around == 0].any()


def test_no_threshold_on_brightness_finds_the_defects(frames: list[SyntheticFrame]) -> None:
    inside = np.zeros(256)
    outside = np.zeros(256)
    for frame in frames:
        marked = frame.mask > 0
        inside += np.bincount(frame.pixels[marked], minlength=256)
        outside += np.bincount(frame.pixels[~marked], minlength=256)
    # Everything up to a grey level, and everything from a grey level on.
    for found, wrong in (
        (inside.cumsum(), outside.cumsum()),
        (inside[::-1].cumsum(), outside[::-1].cumsum()),
    ):
        dice = 2 * found / (inside.sum() + found + wrong)
        assert dice.max() < 0.15


def test_a_frame_uses_the_sensors_range_without_clipping(frames: list[SyntheticFrame]) -> None:
    for frame in frames:
        assert 60 < frame.pixels.mean() < 190
        assert np.isin(frame.pixels, (0, 255)).mean() < 0.001
        assert frame.pixels.std() > 5


def test_a_frame_too_small_for_a_defect_is_refused() -> None:
    with pytest.raises(ValueError, match="64x64"):
        draw_frame(0, width_px=63, height_px=100)
    assert draw_frame(0, width_px=64, height_px=64).mask.any()


def test_a_written_set_is_imported_without_a_problem(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    names = write_dataset(
        tmp_path,
        count=8,
        good_rate=0.5,
        seed=7,
        width_px=128,
        height_px=96,
        progress=lambda done, count: steps.append((done, count)),
    )
    assert steps == [(done, 8) for done in range(1, 9)]
    imported = import_folder(tmp_path, classes=["scratch", "pit", "stain"])
    assert imported.problems == ()
    assert tuple(item.name for item in imported.items) == names
    assert names[2] == "images/part_002_frame_1.png"
    assert sum(item.labels == GoodFrame() for item in imported.items) == 4
    by_part: dict[str, set[bool]] = {}
    for item in imported.items:
        by_part.setdefault(item.name.split("_frame")[0], set()).add(item.is_defective)
    assert all(len(kinds) == 1 for kinds in by_part.values())


def test_frames_of_one_part_share_its_finish_and_not_its_defects(tmp_path: Path) -> None:
    write_dataset(tmp_path, count=4, good_rate=0.0, seed=2, width_px=128, height_px=96)
    masks = [path.read_bytes() for path in sorted((tmp_path / "masks").iterdir())]
    assert len(set(masks)) == 4
    one, same, other = (
        draw_frame(seed, width_px=256, height_px=256, defects=False, part_seed=part)
        for seed, part in ((1, 10), (2, 10), (3, 11))
    )

    def spectrum(frame: SyntheticFrame) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        pixels = frame.pixels - cv2.blur(frame.pixels, (31, 31)).astype(float)
        return np.log1p(np.abs(np.fft.fft2(pixels))[1:60, 1:60]).ravel()

    alike = np.corrcoef(spectrum(one), spectrum(same))[0, 1]
    unlike = np.corrcoef(spectrum(one), spectrum(other))[0, 1]
    assert alike > unlike


@pytest.mark.parametrize(("count", "good_rate"), [(0, 0.5), (4, 1.5)])
def test_a_set_that_can_not_be_drawn_is_refused(
    tmp_path: Path, count: int, good_rate: float
) -> None:
    with pytest.raises(ValueError, match="no data set"):
        write_dataset(tmp_path, count=count, good_rate=good_rate)


def test_parts_of_one_product_lie_alike_and_are_different_parts() -> None:
    def part(seed: int, product_seed: int) -> SurfaceSpec:
        rng, product = (np.random.Generator(np.random.PCG64(s)) for s in (seed, product_seed))
        return draw_surface_spec(rng, diagonal_px=500, product=product)

    parts = [part(seed, 5) for seed in range(20)]
    lay = np.degrees([spec.lay_angle_rad for spec in parts])
    assert 0 < np.ptp(lay) <= 8
    periods = np.array([spec.mark_period_px for spec in parts])
    assert 1 < periods.max() / periods.min() <= 1.08 / 0.92
    others = np.degrees([part(0, product_seed).lay_angle_rad for product_seed in range(20)])
    assert np.ptp(others) > 90
    first, second = (
        draw_frame(seed, width_px=128, height_px=128, product_seed=5) for seed in (1, 2)
    )
    assert not np.array_equal(first.pixels, second.pixels)
