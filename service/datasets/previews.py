"""Drawing previews: a frame, its mask, or its outlines over it, at any size.

Whatever the labels' classes are, one full-size plane is in memory at a time.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from data import (
    BayerPattern,
    BoxLabels,
    MaskLabels,
    PolygonLabels,
    decode_frame,
    rasterize,
)
from data.display import MarkedClass, class_colour, draw_outlines, shrink_plane, to_display
from data.labels import Labels, named_classes
from data.masks import read_mask
from data.storage import read_verified

PreviewKind = Literal["image", "mask", "overlay"]
PreviewFormat = Literal["jpeg", "png"]

_JPEG_QUALITY = 90


@dataclass(frozen=True)
class Preview:
    """An encoded picture."""

    content: bytes
    picture_format: PreviewFormat

    @property
    def media_type(self) -> str:
        """The content type that HTTP calls it."""
        return f"image/{self.picture_format}"


def fit(width: int, height: int, max_side_px: int | None) -> tuple[int, int]:
    """Return the size within ``max_side_px`` that keeps the shape; pictures never grow."""
    longest = max(width, height)
    if max_side_px is None or longest <= max_side_px:
        return width, height
    scale = max_side_px / longest
    return max(1, round(width * scale)), max(1, round(height * scale))


def marked_classes(
    labels: Labels, frame_size: tuple[int, int], classes: Sequence[str], mask_root: Path
) -> Iterator[MarkedClass]:
    """Yield each class that the labels mark, in the order of ``classes``, and where.

    Raises:
        DataError: A class is unknown, or the mask file is missing or changed.
    """
    if isinstance(labels, MaskLabels):
        raw = read_verified(mask_root, labels.file, labels.sha256)
        mask = read_mask(raw, name=labels.file, classes=classes)
        for value in labels.values:
            yield value - 1, (mask == value).view(np.uint8)
        return
    for name in sorted(named_classes(labels), key=classes.index):
        one = _only(labels, name)
        yield classes.index(name), rasterize(one, *frame_size, [name], None)[:, :, 0]


def _only(labels: Labels, class_name: str) -> Labels:
    if isinstance(labels, PolygonLabels):
        return PolygonLabels(tuple(p for p in labels.polygons if p.class_name == class_name))
    assert isinstance(labels, BoxLabels)  # The others name no class.
    return BoxLabels(tuple(box for box in labels.boxes if box.class_name == class_name))


def paint_mask(width: int, height: int, marked: Iterable[MarkedClass]) -> NDArray[np.uint8]:
    """Return (height, width, 3) uint8: each class in its colour on black, later classes on top."""
    picture = np.zeros((height, width, 3), np.uint8)
    for index, plane in marked:
        picture[plane > 0] = class_colour(index)
    return picture


def encode(picture: NDArray[np.uint8], picture_format: PreviewFormat) -> Preview:
    """Return an RGB picture as a file."""
    import cv2

    parameters = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY] if picture_format == "jpeg" else []
    done, buffer = cv2.imencode(f".{picture_format}", picture[:, :, ::-1], parameters)
    if not done:
        raise ValueError(f"a picture of shape {picture.shape} can't be written")
    return Preview(buffer.tobytes(), picture_format)


def render(
    raw: bytes,
    *,
    name: str,
    bayer: BayerPattern | None,
    frame_size: tuple[int, int],
    labels: Labels,
    classes: Sequence[str],
    mask_root: Path,
    kind: PreviewKind,
    size: tuple[int, int],
    picture_format: PreviewFormat,
) -> Preview:
    """Draw one preview.

    Args:
        raw: The frame's file; not looked at for ``mask``.
        name: The frame's name.
        bayer: The data set's; such a frame is drawn demosaiced.
        frame_size: Its (width, height) in px.
        labels: Its labels; not looked at for ``image``.
        classes: The data set's classes, which choose the colours.
        mask_root: What mask files are relative to.
        kind: What to draw.
        size: (width, height) of the result in px.
        picture_format: JPEG is small, PNG exact.

    Raises:
        DataError: The frame or the mask file is damaged.
    """
    marked: Iterator[MarkedClass] = iter(())
    if kind != "image":
        full_size = marked_classes(labels, frame_size, classes, mask_root)
        marked = ((index, shrink_plane(plane, *size)) for index, plane in full_size)
    if kind == "mask":
        return encode(paint_mask(*size, marked), picture_format)
    display = _reduced_display(raw, name, bayer, size)
    return encode(draw_outlines(display, marked), picture_format)


def _reduced_display(
    raw: bytes, name: str, bayer: BayerPattern | None, size: tuple[int, int]
) -> NDArray[np.uint8]:
    """Return the frame at ``size`` for a screen, stretched by the levels of the whole frame."""
    import cv2

    pixels = decode_frame(raw, name=name, bayer=bayer).pixels
    levels = (int(pixels.min()), int(pixels.max())) if pixels.dtype == np.uint16 else None
    if size != (pixels.shape[1], pixels.shape[0]):
        # Reduced first: the stretch and the colours then cost a thumbnail's memory.
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    return to_display(pixels, levels)
