"""From probability maps to defects."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from models import ClassThreshold, OperatingPoint, find_defects
from models.defects import BLOCK_PX, MAX_DEFECTS, POLYGON_TOLERANCE_PX
from models.errors import OutputError


def point(**thresholds: ClassThreshold) -> OperatingPoint:
    return OperatingPoint(classes=thresholds)


def test_a_region_is_reported_with_its_box_area_score_and_outline() -> None:
    probabilities = np.zeros((1, 40, 60), np.float32)
    probabilities[0, 10:14, 20:30] = 0.8
    probabilities[0, 11, 25] = 0.9

    defects, notes = find_defects(probabilities, ["pit"], point(pit=ClassThreshold()))

    assert not notes
    (defect,) = defects
    assert defect.class_name == "pit"
    assert defect.box == (20, 10, 10, 4)
    assert defect.area_px == 40
    assert defect.score == pytest.approx(0.9)
    assert set(defect.polygon) == {(20, 10), (29, 10), (29, 13), (20, 13)}


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_probability_that_is_no_number_is_an_error_and_never_an_ok(value: float) -> None:
    probabilities = np.zeros((2, 40, 60), np.float32)
    probabilities[1, 39, 59] = value

    with pytest.raises(OutputError) as error:
        find_defects(
            probabilities, ["pit", "dent"], point(pit=ClassThreshold(), dent=ClassThreshold())
        )

    assert error.value.code == "probabilities_not_finite"


def test_more_regions_than_16_bits_can_number_are_all_counted() -> None:
    probabilities = np.zeros((1, 514, 514), np.float32)
    probabilities[0, ::2, ::2] = 0.6
    defects, notes = find_defects(probabilities, ["pit"], point(pit=ClassThreshold()))
    assert {defect.area_px for defect in defects} == {1}
    assert notes == [f"{257**2} defects found, the {MAX_DEFECTS} strongest are listed"]


@given(
    st.tuples(st.just(2), st.integers(1, 50), st.integers(1, 50)),
    st.integers(0, 2**32 - 1),
    st.booleans(),
    st.booleans(),
)
def test_a_frames_highest_probability_is_found_and_no_nan_is_overlooked_wherever_it_lies(
    shape: tuple[int, int, int], seed: int, is_padded: bool, is_read_only: bool
) -> None:
    random = np.random.default_rng(seed)
    # Padded frames are answered as a view of more.
    around = random.random((shape[0], shape[1] + 7, shape[2] + 5)).astype(np.float32)
    probabilities = around[:, : shape[1], : shape[2]] if is_padded else around
    place = tuple(int(random.integers(side)) for side in probabilities.shape)
    probabilities[place] = 2.0
    probabilities.flags.writeable = not is_read_only
    thresholds = point(a=ClassThreshold(threshold=1.5), b=ClassThreshold(threshold=1.5))
    ((defect,), _) = find_defects(probabilities, ["a", "b"], thresholds)
    assert (defect.class_name, defect.box) == ("ab"[place[0]], (place[2], place[1], 1, 1))
    assert defect.polygon == ((place[2], place[1]),)

    broken = probabilities.copy()
    broken[place] = np.nan
    with pytest.raises(OutputError):
        find_defects(broken, ["a", "b"], thresholds)


def test_each_class_has_its_own_threshold_and_minimum_area() -> None:
    probabilities = np.zeros((2, 32, 32), np.float32)
    probabilities[0, 2:4, 2:4] = 0.6
    probabilities[1, 2:4, 2:4] = 0.6
    strict = ClassThreshold(threshold=0.7)
    large = ClassThreshold(threshold=0.5, min_area_px=5)

    assert not find_defects(probabilities, ["a", "b"], point(a=strict, b=large))[0]
    defects, _ = find_defects(probabilities, ["a", "b"], point(a=ClassThreshold(), b=large))
    assert [defect.class_name for defect in defects] == ["a"]


def test_pixels_that_touch_at_a_corner_are_one_defect() -> None:
    probabilities = np.zeros((1, 32, 32), np.float32)
    probabilities[0, [5, 6, 7], [5, 6, 7]] = 1.0
    defects, _ = find_defects(probabilities, ["scratch"], point(scratch=ClassThreshold()))
    assert [defect.area_px for defect in defects] == [3]


def test_what_exceeds_the_limit_is_left_out_aloud_and_the_strongest_stay() -> None:
    probabilities = np.zeros((1, 200, 200), np.float32)
    probabilities[0, ::4, ::4] = 0.6
    probabilities[0, 0, 0] = 0.99
    defects, notes = find_defects(probabilities, ["pit"], point(pit=ClassThreshold()))
    assert len(defects) == MAX_DEFECTS
    assert defects[0].score == pytest.approx(0.99)
    assert notes == [f"2500 defects found, the {MAX_DEFECTS} strongest are listed"]


@given(
    st.integers(1, 70), st.integers(1, 70), st.sampled_from([8, 16, 32]), st.integers(0, 2**32 - 1)
)
def test_peaks_that_a_device_has_found_change_nothing(
    height: int, width: int, stride_px: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    padded_size = (2, height + -height % stride_px, width + -width % stride_px)
    # Sparse, so that blocks above the threshold are few; the padding is above it everywhere.
    padded = rng.random(padded_size, dtype=np.float32) ** 40
    padded[:, height:], padded[:, :, width:] = 1, 1
    peaks = torch.nn.functional.max_pool2d(
        torch.from_numpy(np.pad(padded, ((0, 0), (0, BLOCK_PX), (0, BLOCK_PX)))), BLOCK_PX
    ).numpy()
    probabilities = padded[:, :height, :width]
    of_frame = peaks[:, : height // BLOCK_PX, : width // BLOCK_PX]
    classes, both = ["pit", "dent"], point(pit=ClassThreshold(), dent=ClassThreshold())
    expected = find_defects(probabilities, classes, both)
    assert find_defects(probabilities, classes, both, of_frame) == expected


@pytest.mark.parametrize("place", [(0, 0), (39, 10), (10, 59), (39, 59)])
def test_what_is_no_number_is_found_beside_a_devices_peaks_too(place: tuple[int, int]) -> None:
    probabilities = np.zeros((1, 40, 60), np.float32)
    probabilities[0, *place] = np.nan
    peaks = probabilities[:, :32, :48].reshape(1, 2, 16, 3, 16).max(axis=(2, 4))
    with pytest.raises(OutputError):
        find_defects(probabilities, ["pit"], point(pit=ClassThreshold()), peaks)


@given(
    hnp.arrays(
        np.float32,
        st.tuples(st.just(1), st.integers(1, 24), st.integers(1, 24)),
        elements=st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]),
    )
)
def test_every_pixel_above_the_threshold_belongs_to_exactly_one_defect(
    probabilities: np.ndarray,
) -> None:
    defects, _ = find_defects(probabilities, ["pit"], point(pit=ClassThreshold(threshold=0.5)))
    assert sum(defect.area_px for defect in defects) == np.count_nonzero(probabilities >= 0.5)
    scores = [defect.score for defect in defects]
    assert scores == sorted(scores, reverse=True)
    for defect in defects:
        x, y, width, height = defect.box
        assert defect.score == probabilities[0, y : y + height, x : x + width].max()
        assert all(x <= px < x + width and y <= py < y + height for px, py in defect.polygon)


@pytest.mark.parametrize("seed", range(30))
def test_regions_are_those_of_the_whole_frame_however_its_blocks_are_cut(seed: int) -> None:
    random = np.random.default_rng(seed)
    height, width = (int(side) for side in random.integers(1, 100, 2))
    noise = random.random((height, width)).astype(np.float32)
    # From specks to regions that wind through many blocks and around each other.
    blurred = ndimage.gaussian_filter(noise, float(random.uniform(0.3, 4)))
    probabilities = blurred[None] / max(float(blurred.max()), 1e-6)
    threshold = float(np.quantile(probabilities, random.uniform(0.3, 0.999)))
    smallest = int(random.integers(1, 6))
    pit = ClassThreshold(threshold=threshold, min_area_px=smallest)

    defects, _ = find_defects(probabilities, ["pit"], point(pit=pit))
    found = [(one.score, one.box, one.area_px, one.polygon) for one in defects]
    assert sorted(found) == sorted(labelled_regions(probabilities[0], threshold, smallest))
    assert all(probabilities[0, y, x] >= threshold for one in defects for x, y in one.polygon)


def labelled_regions(
    class_map: np.ndarray, threshold: float, smallest: int
) -> list[tuple[float, tuple[int, ...], int, tuple[tuple[int, ...], ...]]]:
    """Return score, box, area and outline of each region, each pixel of the frame labelled."""
    labels, count = ndimage.label(class_map >= threshold, np.ones((3, 3)))
    assert count > 0
    regions: list[tuple[float, tuple[int, ...], int, tuple[tuple[int, ...], ...]]] = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
        inside = labels[rows, columns] == number
        if inside.sum() < smallest:
            continue
        box = (columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start)
        ((border, *_), _) = cv2.findContours(
            inside.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
        )
        outline = cv2.approxPolyDP(border, POLYGON_TOLERANCE_PX, closed=True)[:, 0] + box[:2]
        score = float(class_map[rows, columns][inside].max())
        polygon = tuple((int(x), int(y)) for x, y in outline)
        regions.append((score, box, int(inside.sum()), polygon))
    return regions


@pytest.mark.parametrize("share_above", [0.2, 0.5, 0.7])
def test_noise_has_the_regions_that_labelling_each_pixel_finds(share_above: float) -> None:
    # There are islands in holes, regions of thousands of holes, and more borders than are traced.
    noise = np.random.default_rng(0).random((1, 400, 400), dtype=np.float32)
    threshold, smallest = 1 - share_above, 10
    pit = ClassThreshold(threshold=threshold, min_area_px=smallest)

    defects, _ = find_defects(noise, ["pit"], point(pit=pit))

    expected = sorted(labelled_regions(noise[0], threshold, smallest), reverse=True)[:MAX_DEFECTS]
    found = [(one.score, one.box, one.area_px, one.polygon) for one in defects]
    assert sorted(found, reverse=True) == expected


def test_an_island_in_a_hole_is_a_region_of_its_own_and_none_of_the_ring_around_it() -> None:
    probabilities = np.zeros((1, 40, 60), np.float32)
    probabilities[0, 5:20, 10:30] = 0.6
    probabilities[0, 7:18, 12:28] = 0.0
    probabilities[0, 10:12, 15:18] = 0.9

    defects, _ = find_defects(probabilities, ["pit"], point(pit=ClassThreshold()))

    found = [(round(one.score, 3), one.box, one.area_px) for one in defects]
    assert found == [(0.9, (15, 10, 3, 2), 6), (0.6, (10, 5, 20, 15), 15 * 20 - 11 * 16)]
