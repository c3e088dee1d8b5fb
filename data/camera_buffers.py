"""Frames as a camera's driver hands them over: rows of pixels without a file around them.

Formats are named as in the GenICam Pixel Format Naming Convention (PFNC 2.4), whose multi-byte
values are little-endian.  Its packed formats and those of 10, 12 and 14 bits in 16 are left out: a
model that learned from 8 or 16 bits would see them at another brightness.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from data.bayer import BayerPattern, demosaic
from data.errors import ImageError
from data.images import DecodedImage, Pixels
from data.limits import DEFAULT_LIMITS, PixelLimits

Order = Literal["mono", "rgb", "bgr"]


@dataclass(frozen=True)
class PixelFormat:
    """How a pixel lies in memory.

    Attributes:
        name: PFNC's.
        depth_bits: Of a channel, 8 or 16.
        order: Of the channels.
        bayer: The filters over the top left 2x2 pixels of a mosaic, else None.
    """

    name: str
    depth_bits: Literal[8, 16]
    order: Order = "mono"
    bayer: BayerPattern | None = None

    @property
    def pixel_bytes(self) -> int:
        """Bytes of a pixel."""
        return (1 if self.order == "mono" else 3) * self.depth_bits // 8


def _formats() -> dict[str, PixelFormat]:
    # PFNC tells the first row's two filters; every one of these mosaics is known by them.
    patterns: dict[str, BayerPattern] = {"RG": "RGGB", "GR": "GRBG", "GB": "GBRG", "BG": "BGGR"}
    depths: tuple[Literal[8, 16], ...] = (8, 16)
    formats = [
        form
        for depth in depths
        for form in (
            PixelFormat(f"Mono{depth}", depth),
            PixelFormat(f"RGB{depth}", depth, "rgb"),
            PixelFormat(f"BGR{depth}", depth, "bgr"),
            *(PixelFormat(f"Bayer{row}{depth}", depth, bayer=p) for row, p in patterns.items()),
        )
    ]
    return {form.name: form for form in formats}


PIXEL_FORMATS = _formats()


@dataclass(frozen=True)
class BufferLayout:
    """What the bytes of a buffer mean.

    Attributes:
        width: Pixels of a row.
        height: Rows.
        pixel_format: One of `PIXEL_FORMATS`.
        stride_bytes: From the start of a row to that of the next; None for rows without padding.
    """

    width: int
    height: int
    pixel_format: str
    stride_bytes: int | None = None


def decode_buffer(
    raw: bytes,
    layout: BufferLayout,
    *,
    bayer: BayerPattern | None,
    limits: PixelLimits = DEFAULT_LIMITS,
) -> DecodedImage:
    """Return the picture in a camera's buffer, demosaiced if `bayer` is given.

    Args:
        raw: The buffer; the padding behind the last row may be left out.
        layout: What its bytes mean.
        bayer: The pattern that frames are declared to have, as in `data.bayer.decode_frame`.  A
            buffer of mono pixels is taken for a mosaic then, since many cameras call it so.
        limits: Bounds checked before allocation.

    Raises:
        ImageError: The format is unknown, the buffer has another size than its layout says, or it
            is no such mosaic as is declared.
    """
    form = PIXEL_FORMATS.get(layout.pixel_format)
    if form is None:
        raise ImageError(
            "pixel_format_unknown",
            f"There is no pixel format {layout.pixel_format!r} here.",
            where="header/X-Pixel-Format",
            hint=f"Set the camera to one of {', '.join(PIXEL_FORMATS)}.",
        )
    limits.check(layout.width, layout.height, name="body")
    _check_pattern(form, layout, bayer)
    pixels = _rows(raw, layout, form)
    if bayer is None:
        return DecodedImage(pixels, ())
    notes = [f"Bayer {bayer} demosaiced"]
    if form.bayer is None:
        notes.insert(0, f"{form.name} taken for a mosaic, as the model's frames are")
    return DecodedImage(demosaic(pixels, bayer), tuple(notes))


def _rows(raw: bytes, layout: BufferLayout, form: PixelFormat) -> Pixels:
    """Return the pixels (H, W) or (H, W, 3) in the machine's byte order, C-contiguous."""
    row_bytes = layout.width * form.pixel_bytes
    stride = row_bytes if layout.stride_bytes is None else layout.stride_bytes
    if stride < row_bytes:
        raise ImageError(
            "stride_too_small",
            f"A row of {layout.width} px in {form.name} takes {row_bytes} bytes, the stride is "
            f"{stride}.",
            where="header/X-Stride",
            hint="Send the bytes from one row's start to the next one's.",
        )
    shortest = stride * (layout.height - 1) + row_bytes
    if len(raw) not in (shortest, stride * layout.height):
        raise ImageError(
            "buffer_size_mismatch",
            f"{layout.width}x{layout.height} px in {form.name} with rows {stride} bytes apart take "
            f"{stride * layout.height} bytes; {len(raw)} came.",
            where="whole file",
            hint="Check X-Width, X-Height, X-Pixel-Format and X-Stride against the camera's "
            "settings, and that the whole buffer is sent.",
        )
    kind = np.dtype(f"<u{form.depth_bits // 8}")
    channels = 1 if form.order == "mono" else 3
    shape = (layout.height, layout.width, channels)
    strides = (stride, form.pixel_bytes, kind.itemsize)
    view: Any = np.ndarray(shape, kind, raw, strides=strides)
    if form.order == "bgr":
        view = view[:, :, ::-1]
    pixels: Pixels = np.ascontiguousarray(view, kind.newbyteorder("="))
    return pixels[:, :, 0] if form.order == "mono" else pixels


def _check_pattern(form: PixelFormat, layout: BufferLayout, bayer: BayerPattern | None) -> None:
    """Refuse what can't be a frame of the pattern that is declared."""
    where = "header/X-Pixel-Format"
    if bayer is None:
        if form.bayer is not None:
            raise ImageError(
                "bayer_not_declared",
                f"{form.name} is a raw mosaic; the model learned from finished pictures.",
                where=where,
                hint="Let the camera demosaic as it did for the training frames, or train on raw "
                "frames: a data set that declares its Bayer pattern.",
            )
        return
    if form.order != "mono":
        raise ImageError(
            "bayer_colour",
            f"{form.name} is in colour; the model takes raw Bayer frames ({bayer}).",
            where=where,
            hint="Set the camera to its raw format.",
        )
    if form.bayer not in (None, bayer):
        raise ImageError(
            "bayer_other_pattern",
            f"{form.name} is a {form.bayer} mosaic; the model learned from {bayer}.",
            where=where,
            hint="Turning, mirroring or an odd offset of the region of interest changes the "
            "pattern: set the camera as it was for the training frames.",
        )
    if layout.width % 2 or layout.height % 2:
        raise ImageError(
            "bayer_odd_size",
            f"The frame has {layout.width}x{layout.height} px; a mosaic ({bayer}) repeats every "
            "2 px, so its sides are even.",
            where="header/X-Width",
            hint="Set the camera's region of interest to even sides.",
        )
