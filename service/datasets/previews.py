"""Previews: a frame, its mask, or its outlines over it, at any size."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from data import decode_image, rasterize
from data.labels import Labels

PreviewKind = Literal["image", "mask", "overlay"]
PreviewFormat = Literal["jpeg", "png"]

# Okabe and Ito's palette (https://jfly.uni-koeln.de/color/): told apart by colour-blind people
# too, and bright enough on grey metal.
_PALETTE_RGB = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)

_JPEG_QUALITY = 90


@dataclass(frozen=True)
class Preview:
    """An encoded picture."""

    content: bytes
    media_type: str


def class_colour(index: int) -> tuple[int, int, int]:
    """Return the RGB colour of the class with this index; it repeats after seven."""
    return _PALETTE_RGB[index % len(_PALETTE_RGB)]


def to_display(pixels: NDArray[np.uint8] | NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Return (H, W, 3) uint8 for a screen; 16 bits are stretched from darkest to brightest.

    A 12-bit camera's frame in 16 bits would be black without the stretch.
    """
    if pixels.dtype == np.uint16:
        low, high = int(pixels.min()), int(pixels.max())
        scaled = (pixels.astype(np.float32) - low) * (255 / max(high - low, 1))
        display = scaled.round().astype(np.uint8)
    else:
        display = pixels.astype(np.uint8, copy=False)
    return display if display.ndim == 3 else np.repeat(display[:, :, None], 3, axis=2)


def fit(width: int, height: int, max_side_px: int | None) -> tuple[int, int]:
    """Return the size within ``max_side_px`` that keeps the shape; pictures never grow."""
    longest = max(width, height)
    if max_side_px is None or longest <= max_side_px:
        return width, height
    scale = max_side_px / longest
    return max(1, round(width * scale)), max(1, round(height * scale))


def shrink_mask(planes: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """Return (height, width, K) planes in which no marked pixel has vanished.

    A scratch one pixel wide would be gone after nearest-neighbour sampling: a pixel of the result
    is marked if any pixel under it was.
    """
    import cv2

    if planes.shape[:2] == (height, width):
        return planes
    shrunk = [
        # Area averaging of 0 and 1 is positive exactly where something was marked.
        cv2.resize(plane.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA) > 0
        for plane in np.moveaxis(planes, 2, 0)
    ]
    return np.stack(shrunk, axis=2).astype(np.uint8)


def paint_mask(planes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return (H, W, 3) uint8: each class in its colour on black, later classes on top."""
    picture = np.zeros((*planes.shape[:2], 3), np.uint8)
    for index, plane in enumerate(np.moveaxis(planes, 2, 0)):
        picture[plane > 0] = class_colour(index)
    return picture


def draw_outlines(picture: NDArray[np.uint8], planes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a copy of (H, W, 3) ``picture`` with the outline of each class in its colour.

    The line runs just outside of the marked pixels, so that the defect itself stays visible.
    """
    import cv2

    # Visible on a screen, whatever the picture's size.
    thickness = max(1, round(max(picture.shape[:2]) / 800))
    kernel = np.ones((2 * thickness + 1, 2 * thickness + 1), np.uint8)
    drawn = picture.copy()
    for index, plane in enumerate(np.moveaxis(planes, 2, 0)):
        marked = np.ascontiguousarray(plane)
        ring = cv2.dilate(marked, kernel) > marked
        drawn[ring] = class_colour(index)
    return drawn


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
