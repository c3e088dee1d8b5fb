"""The contact sheet: each frame, its outline in the class's colour, for 8 and 16 bits."""

from typing import Any

import numpy as np
import pytest

from data import Frame
from data.contact_sheet import draw_contact_sheet
from data.display import class_colour
from data.instances import VisibleBox


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side_px", [40, 900])
def test_defects_are_outlined_in_their_class_colour_whatever_the_frame(
    dtype: Any, channels: int, side_px: int
) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(100, 140, (side_px, side_px // 2, channels)).astype(dtype)
    mask = np.zeros((side_px, side_px // 2, 2), np.uint8)
    mask[side_px // 4 : side_px // 2, 5:15, 1] = 1
    good = Frame("good.png", pixels, np.zeros_like(mask))
    sheet = draw_contact_sheet([Frame("a.png", pixels, mask), good], ("pit", "stain"), cell_px=320)
    assert sheet.dtype == np.uint8
    assert sheet.shape[0] > 320
    coloured = (sheet == class_colour(1)).all(axis=2)
    assert coloured[20:340, : sheet.shape[1] // 2].sum() > 20
    assert not coloured[20:340, sheet.shape[1] // 2 + 10 :].any()
    assert not (sheet[20:340] == class_colour(0)).all(axis=2).any()


def test_a_frame_that_carries_boxes_shows_them_around_what_they_hold() -> None:
    pixels = np.full((60, 80, 1), 120, np.uint8)
    # Two boxes of one class that overlap: in a mask they would be one.
    boxes = (VisibleBox("pit", 10, 10, 20, 20, 1.0), VisibleBox("pit", 20, 20, 20, 20, 1.0))
    mask = np.zeros((60, 80, 1), np.uint8)
    sheet = draw_contact_sheet([Frame("a.png", pixels, mask, boxes)], ("pit",), cell_px=320)
    coloured = (sheet == class_colour(0)).all(axis=2)
    # Each pixel is drawn as 4 by 4; a line a pixel wide runs just outside of its box.
    top = int(np.flatnonzero(coloured.any(axis=1))[0])
    left = int(np.flatnonzero(coloured.any(axis=0))[0])
    assert coloured[top, left : left + 82].all()
    assert coloured[top + 40, left + 40 : left + 122].all()
    assert not coloured[top + 41 : top + 81, left + 41 : left + 81].any()
    clean = draw_contact_sheet([Frame("b.png", pixels, mask, ())], ("pit",), cell_px=320)
    assert not (clean[:260] == class_colour(0)).all(axis=2).any()
