"""A contact sheet: what training sees, on one picture, with the labels outlined."""

import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from data.dataset import Frame
from data.display import class_colour, draw_outlines, shrink_plane, to_display
from data.instances import VisibleBox

_GAP_PX = 6
_LINE_PX = 18
_LETTERS = 0.42
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_PAPER = 32
_INK = (235, 235, 235)


def draw_contact_sheet(
    frames: Sequence[Frame], classes: Sequence[str], *, columns: int = 4, cell_px: int = 320
) -> NDArray[np.uint8]:
    """Draw frames side by side, each under its name, with a legend of the classes below.

    A frame larger than its cell is shrunk to fit; a small one is enlarged by a whole factor.
    16 bits are stretched from the frame's darkest pixel to its brightest.

    Args:
        frames: At least one.
        classes: Choose the colours, in the order of the masks' planes.  A frame that was asked for
            its boxes shows those.
        columns: Frames in a row.
        cell_px: Longest side of a frame on the sheet.

    Returns:
        (H, W, 3) uint8, RGB.
    """
    tiles = [_tile(frame, classes, cell_px) for frame in frames]
    height = max(tile.shape[0] for tile in tiles) + _GAP_PX
    width = max(tile.shape[1] for tile in tiles) + _GAP_PX
    columns = min(columns, len(tiles))
    rows = math.ceil(len(tiles) / columns)
    legend = _legend(classes, columns * width)
    sheet: NDArray[np.uint8] = np.full(
        (rows * height + legend.shape[0] + _GAP_PX, columns * width + _GAP_PX, 3), _PAPER, np.uint8
    )
    for place, tile in enumerate(tiles):
        top = _GAP_PX + place // columns * height
        left = _GAP_PX + place % columns * width
        sheet[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    sheet[-legend.shape[0] :, _GAP_PX:] = legend
    return sheet


def _tile(frame: Frame, classes: Sequence[str], cell_px: int) -> NDArray[np.uint8]:
    height, width = frame.pixels.shape[:2]
    longest_px = max(height, width)
    scale = cell_px // longest_px if longest_px <= cell_px else cell_px / longest_px
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    display = to_display(frame.pixels)
    if display.shape[2] == 1:
        display = np.repeat(display, 3, axis=2)
    fitting = np.asarray(cv2.resize(display, size, interpolation=cv2.INTER_AREA), np.uint8)
    if frame.boxes is None:
        planes = enumerate(np.moveaxis(frame.mask, 2, 0))
        marked = ((index, shrink_plane(plane, *size)) for index, plane in planes)
        picture = draw_outlines(fitting, marked)
    else:
        picture = _draw_boxes(fitting, frame.boxes, classes, size[0] / width)
    tile: NDArray[np.uint8] = np.full((size[1] + _LINE_PX, size[0], 3), _PAPER, np.uint8)
    tile[_LINE_PX:] = picture
    _write(tile, _fitting(frame.name, size[0]), (0, _LINE_PX - 5), _INK)
    return tile


def _draw_boxes(
    picture: NDArray[np.uint8], boxes: Sequence[VisibleBox], classes: Sequence[str], scale: float
) -> NDArray[np.uint8]:
    """Return the picture with boxes around, not over, what they hold."""
    drawn = picture.copy()
    for box in boxes:
        left, top = math.floor(box.x * scale) - 1, math.floor(box.y * scale) - 1
        right = math.ceil((box.x + box.width) * scale)
        bottom = math.ceil((box.y + box.height) * scale)
        colour = class_colour(classes.index(box.class_name))
        cv2.rectangle(drawn, (left, top), (right, bottom), colour, 1)
    return drawn


def _legend(classes: Sequence[str], width: int) -> NDArray[np.uint8]:
    """Return the classes' names in their colours, as many to a line as fit."""
    places, left, line = [], 0, 0
    for name in classes:
        text_px = _text_px(name)
        if left and left + text_px > width:
            left, line = 0, line + 1
        places.append((left, line))
        left += text_px + 3 * _GAP_PX
    legend: NDArray[np.uint8] = np.full(
        ((line + 1) * _LINE_PX + _GAP_PX, width, 3), _PAPER, np.uint8
    )
    for index, (name, (left, line)) in enumerate(zip(classes, places, strict=True)):
        _write(legend, name, (left, (line + 1) * _LINE_PX - 3), class_colour(index))
    return legend


def _fitting(name: str, width: int) -> str:
    """Return the end of a name that is too long, where frames of one folder differ."""
    start = 0
    while _text_px(name[start:]) > width and start < len(name):
        start += 1
    return name[start:]


def _text_px(text: str) -> int:
    return int(cv2.getTextSize(text, _FONT, _LETTERS, 1)[0][0])


def _write(picture: Any, text: str, place: tuple[int, int], colour: tuple[int, int, int]) -> None:
    cv2.putText(picture, text, place, _FONT, _LETTERS, colour, 1, cv2.LINE_AA)
