"""Decoding, strict: a damaged file is an error even where its codec would paint over the damage.

The libraries were chosen by what they do with a file that was cut off: simplejpeg (strict),
tifffile and libwebp (imagecodecs) raise, libpng (imagecodecs) raises inside the picture data and
misses damage behind it, so PNG checksums are verified here first.  Pillow is not used for pixels at
all: it reduces 16-bit RGB to 8 bits without a word.
"""

import io
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.headers import PNG_SIGNATURE, TIFF_FAILURES, ImageHeader, damaged, read_header
from data.limits import DEFAULT_LIMITS, PixelLimits

Pixels = NDArray[np.uint8] | NDArray[np.uint16]


@dataclass(frozen=True)
class DecodedImage:
    """A decoded picture.

    Attributes:
        pixels: uint8 or uint16, (H, W) for mono or (H, W, 3) for RGB, C-contiguous.
        notes: Each conversion that was made, as a sentence for the user.
    """

    pixels: Pixels
    notes: tuple[str, ...]


def decode_image(raw: bytes, *, name: str, limits: PixelLimits = DEFAULT_LIMITS) -> DecodedImage:
    """Decode a JPEG, PNG, BMP, TIFF or WebP file completely or not at all.

    Content decides which codec reads the file; a suffix that says otherwise is noted.

    Args:
        raw: The whole file.
        name: The file as the user knows it, for errors and notes.
        limits: Bounds checked from the header before allocation.

    Raises:
        ImageError: The file is no supported picture, outside the limits, cut off or damaged.
    """
    header = read_header(raw, name=name)
    limits.check(header.width, header.height, name=name)
    notes = _suffix_notes(header, name)
    decode = {
        "jpeg": _decode_jpeg,
        "png": _decode_png,
        "bmp": _decode_bmp,
        "tiff": _decode_tiff,
        "webp": _decode_webp,
    }
    pixels, conversions = decode[header.format](raw, header, name)
    notes += conversions
    if header.orientation != 1:
        pixels = _apply_orientation(pixels, header.orientation)
        notes.append(f"EXIF orientation {header.orientation} applied")
    pixels = np.ascontiguousarray(pixels)
    expected = (header.height, header.width) + ((3,) if header.channels == 3 else ())
    if pixels.shape != expected:
        raise damaged(
            name, f"The header promises {expected}, the picture data hold {pixels.shape}."
        )
    return DecodedImage(pixels, tuple(notes))


def _suffix_notes(header: ImageHeader, name: str) -> list[str]:
    stem, dot, suffix = name.rpartition(".")
    kinds = {"jpg": "jpeg", "jpeg": "jpeg", "png": "png", "bmp": "bmp", "tif": "tiff"}
    kinds |= {"tiff": "tiff", "webp": "webp"}
    kind = kinds.get(suffix.lower())
    if stem and dot and kind is not None and kind != header.format:
        return [f"named .{suffix} but is {header.format.upper()}; read as {header.format.upper()}"]
    return []


def _decode_jpeg(raw: bytes, header: ImageHeader, name: str) -> tuple[Any, list[str]]:
    import simplejpeg

    colourspace = "GRAY" if header.channels == 1 else "RGB"
    try:
        pixels = simplejpeg.decode_jpeg(raw, colorspace=colourspace, strict=True)
    except ValueError as error:
        raise damaged(name, f"The JPEG data are cut off or damaged: {error}.") from error
    return (pixels[:, :, 0] if header.channels == 1 else pixels), []


def check_png_integrity(raw: bytes, name: str) -> None:
    """Verify every chunk's checksum and that the last chunk is there.

    Raises:
        ImageError: ``image_damaged`` with the byte at which the file stops being a PNG.
    """
    position = len(PNG_SIGNATURE)
    while position + 12 <= len(raw):
        length, kind = struct.unpack_from(">I4s", raw, position)
        end = position + 8 + length
        if end + 4 > len(raw):
            break
        (expected,) = struct.unpack_from(">I", raw, end)
        if zlib.crc32(memoryview(raw)[position + 4 : end]) != expected:
            raise damaged(name, "A PNG checksum does not match.", where=f"byte {position}")
        if kind == b"IEND":
            return
        position = end + 4
    raise damaged(name, "The PNG file is cut off.", where=f"byte {len(raw)}")


def _decode_png(raw: bytes, header: ImageHeader, name: str) -> tuple[Any, list[str]]:
    import imagecodecs

    check_png_integrity(raw, name)
    bits, colour = struct.unpack_from(">BB", raw, 24)
    try:
        pixels = imagecodecs.png_decode(raw)
    except (imagecodecs.PngError, ValueError, MemoryError) as error:
        raise damaged(name, f"The PNG data are damaged: {error}.") from error
    notes = []
    if colour == 3:
        notes.append("palette expanded")
    elif bits < 8:
        notes.append(f"{bits}-bit grey expanded to 8 bits")
    pixels, dropped = _drop_alpha(pixels)
    if colour == 3 and header.channels == 1 and pixels.ndim == 3:
        pixels = pixels[:, :, 0]
    return pixels, notes + dropped


def _drop_alpha(pixels: Any) -> tuple[Any, list[str]]:
    if pixels.ndim == 3 and pixels.shape[2] in (2, 4):
        colour = pixels[:, :, 0] if pixels.shape[2] == 2 else pixels[:, :, :3]
        return colour, ["alpha channel dropped"]
    return pixels, []


def _decode_bmp(raw: bytes, header: ImageHeader, name: str) -> tuple[Any, list[str]]:
    import cv2

    pixels = cv2.imdecode(np.frombuffer(raw, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise damaged(name, "The BMP data are damaged.")
    (bits,) = struct.unpack_from("<H", raw, 28)
    notes = ["palette expanded"] if bits <= 8 and header.channels == 3 else []
    if bits == 32:
        notes.append("alpha channel dropped")
    if pixels.ndim == 3:
        pixels = pixels[:, :, 2::-1] if header.channels == 3 else pixels[:, :, 0]
    return pixels, notes


def _decode_tiff(raw: bytes, header: ImageHeader, name: str) -> tuple[Any, list[str]]:
    import tifffile

    notes = []
    try:
        with tifffile.TiffFile(io.BytesIO(raw)) as file:
            page: Any = file.pages[0]
            # One thread: the data loader's workers and the server's threads are the parallelism.
            pixels = page.asarray(maxworkers=1)
            if page.samplesperpixel > 1 and int(page.planarconfig) == 2:
                pixels = np.moveaxis(pixels, 0, -1)
            if page.photometric.name == "MINISWHITE":
                pixels = np.iinfo(pixels.dtype).max - pixels
                notes.append("white-is-zero inverted")
    except TIFF_FAILURES as error:
        raise damaged(name, f"The TIFF data are cut off or damaged: {error}.") from error
    if pixels.ndim == 3 and pixels.shape[2] > header.channels:
        pixels = pixels[:, :, : header.channels]
        pixels = pixels[:, :, 0] if header.channels == 1 else pixels
        notes.append("alpha channel dropped")
    # TIFF may be stored in either byte order; the product computes in the machine's own.
    return pixels.astype(pixels.dtype.newbyteorder("="), copy=False), notes


def _decode_webp(raw: bytes, _header: ImageHeader, name: str) -> tuple[Any, list[str]]:
    import imagecodecs

    try:
        pixels = imagecodecs.webp_decode(raw)
    except (imagecodecs.WebpError, ValueError, MemoryError) as error:
        raise damaged(name, f"The WebP data are cut off or damaged: {error}.") from error
    return _drop_alpha(pixels)


def _apply_orientation(pixels: Any, orientation: int) -> Any:
    """Turn pixels upright (EXIF 2.32, section 4.6.4, table 4)."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    # After the transposition of 5 to 8, each orientation is a choice of two mirrors.
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels
