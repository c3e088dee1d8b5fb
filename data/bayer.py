"""Raw Bayer frames: mono files that hold the mosaic under a camera's colour filters.

Nothing in a file tells a mosaic from a grey picture, so the user declares it, and every frame is
then read through `decode_frame`.
"""

from typing import Any, Literal, get_args

import numpy as np

from data.errors import ImageError
from data.headers import ImageHeader, read_header
from data.images import DecodedImage, Pixels, decode_image
from data.limits import DEFAULT_LIMITS, PixelLimits

# The filters over the top left 2x2 pixels, row by row.
BayerPattern = Literal["RGGB", "BGGR", "GRBG", "GBRG"]
BAYER_PATTERNS: tuple[BayerPattern, ...] = get_args(BayerPattern)


def decode_frame(
    raw: bytes, *, name: str, bayer: BayerPattern | None, limits: PixelLimits = DEFAULT_LIMITS
) -> DecodedImage:
    """Decode a data set's frame, completely or not at all, and demosaic it if it was declared so.

    Args:
        raw: The whole file.
        name: The file as the user knows it, for errors and notes.
        bayer: The pattern that all frames are declared to have; None takes pictures as they are.
        limits: Bounds checked from the header before allocation.

    Raises:
        ImageError: See `decode_image`; or the picture can't be a mosaic, because it is in colour,
            has an odd side, or is turned by its EXIF orientation.
    """
    if bayer is None:
        return decode_image(raw, name=name, limits=limits)
    header = read_header(raw, name=name)
    _check_mosaic(header, name, bayer)
    mosaic = decode_image(raw, name=name, limits=limits)
    notes = [*mosaic.notes, f"Bayer {bayer} demosaiced"]
    if header.is_lossy:
        notes.append("lossy compression has mixed the mosaic's colours")
    return DecodedImage(demosaic(mosaic.pixels, bayer), tuple(notes))


def demosaic(mosaic: Pixels, bayer: BayerPattern) -> Pixels:
    """Fill in the two colours that each pixel's filter kept out, bilinearly.

    A missing colour is the rounded mean of the two or four neighbours that have it, whatever they
    are: no choice that a defect's edge could tip.  The outermost pixels are copies of their inner
    neighbours, which are complete.

    Args:
        mosaic: (H, W) uint8 or uint16, H and W even.
        bayer: The filters over the top left 2x2 pixels.

    Returns:
        (H, W, 3) RGB in the mosaic's own depth, C-contiguous.
    """
    import cv2

    # OpenCV's older names (BayerBG for RGGB) tell the second row's second and third pixel.
    codes = {
        "RGGB": cv2.COLOR_BayerRGGB2RGB,
        "BGGR": cv2.COLOR_BayerBGGR2RGB,
        "GRBG": cv2.COLOR_BayerGRBG2RGB,
        "GBRG": cv2.COLOR_BayerGBRG2RGB,
    }
    filled: Any = cv2.demosaicing(np.ascontiguousarray(mosaic), codes[bayer])
    pixels: Pixels = filled
    return pixels


def _check_mosaic(header: ImageHeader, name: str, bayer: BayerPattern) -> None:
    """Refuse a picture that can't be a camera's raw mosaic, told from its header alone."""
    if header.channels != 1:
        raise ImageError(
            "bayer_colour",
            f"The picture is in colour; raw Bayer frames ({bayer}) are declared, which are mono.",
            file=name,
            hint="Save the camera's raw frames as mono PNG or TIFF; or put colour pictures into a "
            "data set that declares no Bayer pattern.",
        )
    if header.orientation != 1:
        raise ImageError(
            "bayer_turned",
            f"EXIF orientation {header.orientation} turns the picture, and the pattern ({bayer}) "
            "with it.",
            file=name,
            hint="Remove the orientation tag; a mosaic is read as the sensor delivers it.",
        )
    if header.width % 2 or header.height % 2:
        raise ImageError(
            "bayer_odd_size",
            f"The picture has {header.width}x{header.height} px; a mosaic ({bayer}) repeats every "
            "2 px, so its sides are even.",
            file=name,
            hint="Set the camera's region of interest to even sides, and to an even offset, which "
            "keeps the pattern.",
        )
