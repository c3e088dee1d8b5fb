import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from data.display import class_colour, draw_outlines, shrink_plane, to_display
from service.datasets.previews import fit

SIDES = st.integers(1, 3000)


@given(width=SIDES, height=SIDES, longest=st.integers(16, 2000))
def test_a_fitted_size_stays_within_the_limit_and_never_grows(
    width: int, height: int, longest: int
) -> None:
    fitted = fit(width, height, longest)
    assert max(fitted) == min(longest, max(width, height))
    assert 1 <= fitted[0] <= width
    assert 1 <= fitted[1] <= height
    assert fit(width, height, None) == (width, height)


@settings(deadline=None, max_examples=50)
@given(x=st.integers(0, 499), y=st.integers(0, 399), width=st.integers(16, 500))
def test_a_single_marked_pixel_survives_every_reduction(x: int, y: int, width: int) -> None:
    plane = np.zeros((400, 500), np.uint8)
    assert not shrink_plane(plane, *fit(500, 400, width)).any()
    plane[y, x] = 1
    size = fit(500, 400, width)
    shrunk = shrink_plane(plane, *size)
    assert shrunk.shape == (size[1], size[0])
    assert shrunk.any()


def test_a_dark_twelve_bit_frame_is_stretched_to_the_screens_range() -> None:
    frame = np.array([[100, 1000], [2000, 4095]], np.uint16)
    display = to_display(frame)
    assert display.shape == (2, 2, 3)
    assert (display.min(), display.max()) == (0, 255)


def test_a_flat_sixteen_bit_frame_is_shown_without_dividing_by_zero() -> None:
    assert not to_display(np.full((3, 3), 7, np.uint16)).any()


def test_an_outline_lies_outside_of_what_it_outlines() -> None:
    picture = np.full((40, 40, 3), 50, np.uint8)
    plane = np.zeros((40, 40), np.uint8)
    plane[10:20, 10:20] = 1
    drawn = draw_outlines(picture, [(0, plane)])
    assert (drawn[10:20, 10:20] == 50).all()
    assert drawn[9, 15].tolist() == list(class_colour(0))
    assert (picture == 50).all()


def test_neighbouring_classes_have_different_colours() -> None:
    assert len({class_colour(index) for index in range(7)}) == 7
    assert class_colour(7) == class_colour(0)
