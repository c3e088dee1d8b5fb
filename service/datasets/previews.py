"""Previews: a frame, its mask, or its outlines over it, at any size."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from data import decode_image, rasterize
from data.display import class_colour, draw_outlines, shrink_mask, to_display
from data.labels import Labels

PreviewKind = Literal["image", "mask", "overlay"]
PreviewFormat = Literal["jpeg", "png"]

_JPEG_QUALITY = 90


@dataclass(frozen=True)
class Preview:
    """An encoded picture."""

    content: bytes
    media_type: str


def fit(width: int, height: int, max_side_px: int | None) -> tuple[int, int]:
    """Return the size within ``max_side_px`` that keeps the shape; pictures never grow."""
    longest = max(width, height)
    if max_side_px is None or longest <= max_side_px:
        return width, height
    scale = max_side_px / longest
    return max(1, round(width * scale)), max(1, round(height * scale))


def paint_mask(planes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return (H, W, 3) uint8: each class in its colour on black, later classes on top."""
    picture = np.zeros((*planes.shape[:2], 3), np.uint8)
    for index, plane in enumerate(np.moveaxis(planes, 2, 0)):
        picture[plane > 0] = class_colour(index)
    return picture


def encode(picture: NDArray[np.uint8], picture_format: PreviewFormat) -> Preview:
    """Return an RGB picture as a file."""
    import cv2

    parameters = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY] if picture_format == "jpeg" else []
    done, buffer = cv2.imencode(f".{picture_format}", picture[:, :, ::-1], parameters)
    if not done:
        raise ValueError(f"a picture of shape {picture.shape} can't be written")
    return Preview(buffer.tobytes(), f"image/{picture_format}")


def render(
    raw: bytes,
    *,
    name: str,
    labels: Labels,
    classes: Sequence[str],
    mask_root: Path,
    kind: PreviewKind,
    max_side_px: int | None,
    picture_format: PreviewFormat,
) -> Preview:
    """Draw one preview.

    Args:
        raw: The frame's file.
        name: The frame's name.
        labels: Its labels; not looked at for ``image``.
        classes: The data set's classes, which choose the colours.
        mask_root: What mask files are relative to.
        kind: What to draw.
        max_side_px: Longest side of the result; None for the frame's own size.
        picture_format: JPEG is small, PNG exact.
    """
    import cv2

    pixels = decode_image(raw, name=name).pixels
    height, width = pixels.shape[:2]
    size = fit(width, height, max_side_px)
    planes = np.zeros((size[1], size[0], 0), np.uint8)
    if kind != "image":
        planes = shrink_mask(rasterize(labels, width, height, classes, mask_root), *size)
    if kind == "mask":
        return encode(paint_mask(planes), picture_format)
    display = to_display(pixels)
    if size != (width, height):
        display = cv2.resize(display, size, interpolation=cv2.INTER_AREA)
    return encode(draw_outlines(display, planes), picture_format)
