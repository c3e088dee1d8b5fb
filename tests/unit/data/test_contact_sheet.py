"""The contact sheet: each frame, its outline in the class's colour, for 8 and 16 bits."""

from typing import Any

import numpy as np
import pytest

from data import Frame
from data.contact_sheet import draw_contact_sheet
from data.display import class_colour


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
