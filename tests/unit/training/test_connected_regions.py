"""Connected regions and their sizes, against scipy and by trying every direction."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from tests.oracles.exact_scores import EIGHT_NEIGHBOURS, rectangle_short_sides
from training.connected_regions import find_regions, short_side_px

PLANES = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, max_side=14))
SPARSE = st.tuples(st.integers(1, 30), st.integers(1, 30)).flatmap(
    lambda shape: st.lists(
        st.tuples(st.integers(0, shape[0] - 1), st.integers(0, shape[1] - 1)), max_size=12
    ).map(lambda places: draw(shape, places))
)


def draw(shape: tuple[int, int], places: list[tuple[int, int]]) -> np.ndarray:
    plane = np.zeros(shape, np.bool_)
    for place in places:
        plane[place] = True
    return plane


@settings(deadline=None)
@given(PLANES | SPARSE)
def test_regions_are_those_of_the_whole_map_although_its_empty_parts_are_skipped(
    plane: np.ndarray,
) -> None:
    found = find_regions(plane)
    ids, count = ndimage.label(plane, EIGHT_NEIGHBOURS)
    expected = {frozenset(np.flatnonzero(ids == number).tolist()) for number in range(1, count + 1)}
    regions = [found.pixels[found.region_of_pixel == number] for number in range(count)]
    assert {frozenset(pixels.tolist()) for pixels in regions} == expected
    assert len(found.areas_px) == count
    for pixels, area_px, box in zip(regions, found.areas_px, found.boxes, strict=True):
        y, x = np.divmod(pixels, plane.shape[1])
        assert area_px == len(pixels)
        assert tuple(box) == (x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1)
    assert np.array_equal(found.draw(plane.shape), plane)


@settings(deadline=None)
@given(PLANES, st.integers(1, 6))
def test_small_regions_are_left_out_whole(plane: np.ndarray, least: int) -> None:
    found = find_regions(plane)
    kept = found.keep(found.areas_px >= least).draw(plane.shape)
    ids, count = ndimage.label(plane, EIGHT_NEIGHBOURS)
    areas = np.bincount(ids.ravel(), minlength=count + 1)
    assert np.array_equal(kept, plane & (areas[ids] >= least))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=9))
def test_the_short_side_is_that_of_a_rectangle_of_least_area(
    places: list[tuple[int, int]],
) -> None:
    y, x = np.array(places).T
    expected = rectangle_short_sides(y, x)
    found = short_side_px(y, x)
    assert any(abs(found - (side + 1)) < 2e-3 for side in expected)


@pytest.mark.parametrize("step", [(0, 1), (1, 0), (1, 1), (1, -1)])
def test_a_line_one_pixel_wide_measures_one_in_whatever_direction(step: tuple[int, int]) -> None:
    along = np.arange(40)
    assert short_side_px(50 + step[0] * along, 50 + step[1] * along) == pytest.approx(1, abs=1e-3)


def test_a_scratch_is_as_short_as_it_is_wide_whatever_its_area() -> None:
    plane = np.zeros((30, 200), np.bool_)
    plane[10:13, 5:190] = True
    plane[20:29, 100:109] = True
    regions = find_regions(plane)
    assert regions.areas_px.tolist() == [555, 81]
    assert regions.short_sides_px(200) == pytest.approx([3, 9], abs=1e-3)
