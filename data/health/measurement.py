"""What a frame's pixels say about it in a few numbers: light, sharpness, and how to know it again.

A plain perceptual hash (ImageHash and its like) was measured and left out.  It needs 8 bits, and of
one product line it can't tell frames apart: photos of ball screws hours apart differ in none of its
64 bits.  Two small signatures can (`benchmarks.near_duplicates` prints the numbers): the *layout*,
a 32x32 reduction of the frame, and the *detail*, the fine structure behind it.
"""

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.images import Pixels, decode_image
from data.items import Item
from data.limits import PixelLimits
from data.storage import read_verified

Plane = NDArray[np.float32]

# Another number measures all frames again; raise it with any change of what is measured.
METHOD = 1

LAYOUT_SIDE = 32
DETAIL_SIDE = 16
# Frames of any size are compared at this one, where sensor noise is averaged and texture is not.
_COMPARED_SIDE = 512
_DETAIL_SIGMA_PX = 2.0
# JPEG writes a saturated pixel as 253 to 255, and a black one as 0 to 2.
_CLIPPED_LEVELS = 2
# Cameras deliver this many bits, in 16 where they are more than 8.
_SENSOR_BITS = (8, 10, 12, 14, 16)
# Of the frame reduced by half.  With these, drawn frames that were blurred by 3 px and then
# got a sensor's noise stay clear of the sharp ones; by the finest detail, which is noise, less so.
_SHARPNESS_SIGMAS_PX = (0.7, 1.5, 6.0)
# The layout is kept in 256ths of a grey level.
LAYOUT_STEPS = 256


@dataclass(frozen=True)
class FrameMeasurement:
    """One frame's numbers; grey levels are 0 to 255 whatever the frame's depth.

    Attributes:
        pixels_sha256: Of shape, depth and pixels: equal for equal pictures in different files.
        brightness: Mean grey level.
        contrast: Standard deviation of the grey level.
        brightest: Highest grey level; a 12-bit camera in 16 bits never exceeds 16.
        dark_share: Pixels at the lower end of the sensor's range, 0 to 1.
        bright_share: Pixels at its upper end.
        sharpness: Fine detail beside coarse detail, see `measure_pixels`; 0 for a blank frame.
        colour: Mean distance between a pixel's strongest and weakest channel, in grey levels.
        layout: (32, 32) uint16, 256ths of a grey level, as bytes in little-endian order.
        detail: (16, 16) float16 of length 1, as bytes in little-endian order.
    """

    pixels_sha256: str
    brightness: float
    contrast: float
    brightest: float
    dark_share: float
    bright_share: float
    sharpness: float
    colour: float
    layout: bytes
    detail: bytes


def measure_item(item: Item, root: Path) -> FrameMeasurement:
    """Read a frame from storage, verify it and measure it.

    Raises:
        DataError: The file is missing, changed or damaged; it carries the frame's name.
    """
    raw = read_verified(root, item.file, item.sha256)
    # The limits were the import's to check; the digest says that this is the same file.
    size = PixelLimits(item.width * item.height, max(item.width, item.height), 1)
    return measure_pixels(decode_image(raw, name=item.name, limits=size).pixels)


def measure_pixels(pixels: Pixels) -> FrameMeasurement:
    """Measure one frame; 5 megapixels take about 20 ms.

    Sharpness is the standard deviation of the detail of 1 to 3 px over that of the detail of 3 to
    12 px.  What is finer still is left out: it is noise, which a lens out of focus does not blur.

    Args:
        pixels: (H, W) or (H, W, 3) RGB, uint8 or uint16.
    """
    import cv2

    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY) if pixels.ndim == 3 else pixels
    container = np.float32(255 / np.iinfo(grey.dtype).max)
    mean, spread = cv2.meanStdDev(grey)
    brightest = int(grey.max())
    dark_share, bright_share = _clipped_shares(grey, brightest)
    compared = _reduce(grey, _COMPARED_SIDE, _COMPARED_SIDE) * container
    return FrameMeasurement(
        pixels_sha256=_digest(pixels),
        brightness=float(mean.item() * container),
        contrast=float(spread.item() * container),
        brightest=float(brightest * container),
        dark_share=dark_share,
        bright_share=bright_share,
        sharpness=_sharpness(grey),
        colour=_colour(pixels) * float(container),
        layout=_layout(compared),
        detail=_detail(compared),
    )


def _digest(pixels: Pixels) -> str:
    digest = hashlib.sha256(f"{pixels.shape} {pixels.dtype}".encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def _clipped_shares(grey: Pixels, brightest: int) -> tuple[float, float]:
    import cv2

    bits = next(bits for bits in _SENSOR_BITS if brightest < 1 << bits)
    top = (1 << bits) - 1
    margin = top * _CLIPPED_LEVELS // 255
    dark = cv2.countNonZero(cv2.compare(grey, margin, cv2.CMP_LE))
    bright = cv2.countNonZero(cv2.compare(grey, top - margin, cv2.CMP_GE))
    return dark / grey.size, bright / grey.size


def _sharpness(grey: Pixels) -> float:
    import cv2

    height, width = grey.shape
    half = _reduce(grey, width // 2, height // 2)
    smooth = [cv2.GaussianBlur(half, (0, 0), sigma_px) for sigma_px in _SHARPNESS_SIGMAS_PX]
    fine, coarse = float((smooth[0] - smooth[1]).std()), float((smooth[1] - smooth[2]).std())
    return fine / coarse if coarse > 0 else 0.0


def _colour(pixels: Pixels) -> float:
    if pixels.ndim == 2:
        return 0.0
    return float((pixels.max(axis=2) - pixels.min(axis=2)).mean())


def _layout(compared: Plane) -> bytes:
    layout = _reduce(compared, LAYOUT_SIDE, LAYOUT_SIDE) * LAYOUT_STEPS
    return np.rint(layout).astype("<u2").tobytes()


def _detail(compared: Plane) -> bytes:
    """Sum the fine structure of each cell under signs that are the same for every frame.

    Such a random projection keeps the correlation of two frames' fine structures up to about
    1 / DETAIL_SIDE (Achlioptas, "Database-friendly random projections", 2003).
    """
    import cv2

    fine = compared - cv2.GaussianBlur(compared, (0, 0), _DETAIL_SIGMA_PX)
    sums = _reduce(fine * _signs(), DETAIL_SIDE, DETAIL_SIDE)
    length = float(np.linalg.norm(sums))
    return (sums / length if length > 0 else sums).astype("<f2").tobytes()


@cache
def _signs() -> Plane:
    rng = np.random.Generator(np.random.PCG64(0))
    ones = rng.integers(0, 2, (_COMPARED_SIDE, _COMPARED_SIDE))
    return (2 * ones - 1).astype(np.float32)


def _reduce(plane: Any, width: int, height: int) -> Plane:
    import cv2

    reduced: Plane = cv2.resize(
        plane.astype(np.float32, copy=False), (width, height), interpolation=cv2.INTER_AREA
    )
    return reduced
