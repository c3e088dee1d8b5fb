"""Index masks: one picture whose pixel values are class indices."""

import io
import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.errors import ImageError, LabelError
from data.headers import read_header
from data.images import check_png_integrity, decode_image
from data.limits import DEFAULT_LIMITS, PixelLimits

# Keeps a made mask, a PNG file, and returns its path relative to the storage root.
KeepMask = Callable[[bytes], str]


def read_mask(
    raw: bytes, *, name: str, classes: Sequence[str], limits: PixelLimits = DEFAULT_LIMITS
) -> NDArray[np.uint8]:
    """Read an index mask: 0 is background, i + 1 stands for classes[i].

    With one class, 0 and 255 are read as 0 and 1.  A palette is taken as colouring: the indices
    under it are the values.

    Args:
        raw: A PNG, BMP, TIFF or lossless WebP file.
        name: The file as the user knows it, for errors.
        classes: The data set's classes, in order.
        limits: Bounds checked from the header before allocation.

    Returns:
        (H, W) uint8.

    Raises:
        LabelError: The file is JPEG or lossy WebP, in colour, damaged, or holds a value that is no
            class; the first such pixel is named.
        ImageError: The file is no picture that can be decoded at all.
    """
    header = read_header(raw, name=name)
    if header.is_lossy:
        kind = "JPEG" if header.format == "jpeg" else "lossy WebP"
        raise LabelError(
            "mask_lossy",
            f"The mask is a {kind} file, whose compression changes values at every edge.",
            file=name,
            hint="Export the mask again as PNG; converting this file would keep the damage.",
        )
    limits.check(header.width, header.height, name=name)
    indices = _read_png_indices(raw, name) if header.format == "png" else None
    pixels: Any = (
        indices if indices is not None else decode_image(raw, name=name, limits=limits).pixels
    )
    if pixels.ndim == 3:
        pixels = _require_grey(pixels, name)
    return _require_classes(pixels, name, classes)


def read_class_mask(
    raw: bytes,
    *,
    name: str,
    class_name: str,
    classes: Sequence[str],
    limits: PixelLimits = DEFAULT_LIMITS,
) -> NDArray[np.uint8]:
    """Read a mask whose every marked pixel (1 or 255) is of one class, as an index mask.

    Args:
        raw: A PNG, BMP or TIFF file.
        name: The file as the user knows it, for errors.
        class_name: Of what it marks, one of ``classes``.
        classes: The data set's classes, in order.
        limits: Bounds checked from the header before allocation.

    Returns:
        (H, W) uint8 of 0 and the class's value.

    Raises:
        LabelError: See `read_mask`.
        ImageError: See `read_mask`.
    """
    marked = read_mask(raw, name=name, classes=[class_name], limits=limits)
    value = np.uint8(classes.index(class_name) + 1)
    indices: NDArray[np.uint8] = marked * value
    return indices


def encode_mask(mask: NDArray[np.uint8]) -> bytes:
    """Return a (H, W) uint8 index mask as a PNG file."""
    import imagecodecs

    return bytes(imagecodecs.png_encode(np.ascontiguousarray(mask), level=1))


def _read_png_indices(raw: bytes, name: str) -> NDArray[np.uint8] | None:
    """Return the stored values of a palette or sub-byte PNG, None for any other."""
    from PIL import Image

    bits, colour = struct.unpack_from(">BB", raw, 24)
    if not (colour == 3 or (colour == 0 and bits < 8)):
        return None
    check_png_integrity(raw, name)
    try:
        with Image.open(io.BytesIO(raw)) as picture:
            values: NDArray[np.uint8] = np.array(picture, dtype=np.uint8)
    except (OSError, ValueError, SyntaxError) as error:
        raise ImageError(
            "image_damaged",
            f"The PNG data are damaged: {error}.",
            file=name,
            hint="Export the mask again.",
        ) from error
    # Pillow spreads 2- and 4-bit grey over 0 to 255; 1-bit grey it reads as booleans.
    if colour == 0 and bits in (2, 4):
        values //= {2: 85, 4: 17}[bits]
    return values


def _require_grey(pixels: NDArray[Any], name: str) -> NDArray[Any]:
    """Return one channel of an RGB picture whose channels are all equal."""
    first: NDArray[Any] = pixels[:, :, 0]
    differing = (pixels != first[:, :, None]).any(axis=2)
    if differing.any():
        y, x = np.unravel_index(int(differing.argmax()), differing.shape)
        raise LabelError(
            "mask_colour",
            f"The mask is coloured: RGB {tuple(int(v) for v in pixels[y, x])} is no class index.",
            file=name,
            where=f"pixel (x={x}, y={y})",
            hint="Export the mask as one channel of class indices (0 background, 1, 2, ...).",
        )
    return first


def _require_classes(pixels: NDArray[Any], name: str, classes: Sequence[str]) -> NDArray[np.uint8]:
    present = set(present_values(pixels))
    allowed = set(range(len(classes) + 1))
    if present <= allowed:
        return np.ascontiguousarray(pixels, dtype=np.uint8)
    if len(classes) == 1 and present <= {0, 255}:
        marked: NDArray[np.uint8] = np.equal(pixels, 255).astype(np.uint8)
        return marked
    strange = ~np.isin(pixels, sorted(allowed))
    y, x = np.unravel_index(int(strange.argmax()), strange.shape)
    listed = ", ".join(f"{index + 1} {name}" for index, name in enumerate(classes))
    raise LabelError(
        "mask_value",
        f"The value {int(pixels[y, x])} is no class (0 background, {listed}).",
        file=name,
        where=f"pixel (x={x}, y={y})",
        hint="Export class indices without anti-aliasing"
        + (", or 0 and 255." if len(classes) == 1 else "."),
    )


def present_values(pixels: NDArray[Any]) -> tuple[int, ...]:
    """Return the values that occur, ascending; a 5-megapixel mask takes 2 ms, np.unique 40."""
    import cv2

    if pixels.dtype != np.uint8:
        return tuple(int(value) for value in np.unique(pixels))
    counts = cv2.calcHist([np.ascontiguousarray(pixels)], [0], None, [256], [0, 256])
    return tuple(int(value) for value in np.flatnonzero(counts))
