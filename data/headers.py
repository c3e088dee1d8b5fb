"""Picture headers, read from the first bytes and without decoding a pixel.

What can't be decoded faithfully is refused here, so that an upload is answered before memory is
spent on it.
"""

import io
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from data.errors import ImageError
from data.exif import exif_orientation
from data.other_content import describe_content

ImageFormat = Literal["jpeg", "png", "bmp", "tiff", "webp"]

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_WEBP_ANIMATION = 0x02

# tifffile and the codecs under it raise whatever their parsing trips over; each of these was seen
# with one flipped byte in a valid file.
TIFF_FAILURES = (
    ValueError,
    RuntimeError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    ArithmeticError,
    OSError,
    MemoryError,
    struct.error,
)

# Lossless and verified to raise on truncation.  JPEG in TIFF is missing on purpose: its decoder
# paints grey where a strip ends early.
_TIFF_COMPRESSIONS = frozenset(
    {"NONE", "LZW", "DEFLATE", "ADOBE_DEFLATE", "PACKBITS", "ZSTD", "LZMA"}
)
_TIFF_COLOURS = {"MINISWHITE": 1, "MINISBLACK": 1, "RGB": 3}


@dataclass(frozen=True)
class ImageHeader:
    """What a picture will be once decoded.

    Attributes:
        format: The codec, told from the content and never from the file's suffix.
        width: Pixels, after EXIF orientation.
        height: Pixels, after EXIF orientation.
        channels: 1 for mono (also when stored through a palette of greys), 3 for RGB.
        bit_depth: 8 or 16.
        orientation: EXIF orientation, 1 (upright) to 8.
        is_lossy: Whether the compression changes values, which no mask survives.
    """

    format: ImageFormat
    width: int
    height: int
    channels: Literal[1, 3]
    bit_depth: Literal[8, 16]
    orientation: int = 1
    is_lossy: bool = False


def read_header(raw: bytes, *, name: str) -> ImageHeader:
    """Read a picture's header without decoding it.

    Args:
        raw: The whole file.
        name: The file as the user knows it, for errors.

    Raises:
        ImageError: The file is empty, not a supported picture, damaged at its head, or of a kind
            that can't be decoded without loss (CMYK, float, several pages, animated, packed 12
            bit).
    """
    if not raw:
        raise ImageError(
            "image_empty",
            "The file is empty (0 bytes).",
            file=name,
            hint="Copy it again from the camera; the transfer probably stopped.",
        )
    if raw.startswith(b"\xff\xd8\xff"):
        return _read_jpeg_header(raw, name)
    if raw.startswith(PNG_SIGNATURE):
        return _read_png_header(raw, name)
    if raw.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return _read_tiff_header(raw, name)
    if raw.startswith(b"BM") and raw[6:10] == b"\0\0\0\0":
        return _read_bmp_header(raw, name)
    if raw.startswith(b"RIFF") and raw[8:12] == b"WEBP":
        return _read_webp_header(raw, name)
    raise ImageError(
        "image_unknown_format",
        f"The content is {describe_content(raw)}, no JPEG, PNG, BMP, TIFF or WebP picture.",
        file=name,
        hint="Upload the picture itself; a suffix does not make a file a picture.",
    )


def damaged(name: str, detail: str, *, where: str | None = None) -> ImageError:
    """Return the error for a file that does not hold what its format promises."""
    return ImageError(
        "image_damaged",
        detail,
        file=name,
        where=where,
        hint="Copy it again from the camera; if the original is damaged too, leave the frame out.",
    )


def _refuse_colour(name: str, found: str) -> ImageError:
    return ImageError(
        "image_colour_space",
        f"The picture is {found}; mono and RGB pictures are read.",
        file=name,
        hint="Export it as mono or RGB; the conversion depends on a profile only its author knows.",
    )


def _refuse_depth(name: str, found: str) -> ImageError:
    return ImageError(
        "image_bit_depth",
        f"The picture has {found}; 8 or 16 bit unsigned integers are read.",
        file=name,
        hint="Save it with 8 or 16 bits a channel (10- and 12-bit data go into 16 bits).",
    )


def jpeg_segments(raw: bytes, name: str) -> Iterator[tuple[int, bytes]]:
    """Yield (marker, payload) up to the first scan."""
    position = 2
    while position + 4 <= len(raw):
        if raw[position] != 0xFF:
            raise damaged(name, "The JPEG header is damaged.", where=f"byte {position}")
        marker = raw[position + 1]
        if marker == 0xFF:
            position += 1
            continue
        if marker == 0xD9:
            break
        (length,) = struct.unpack_from(">H", raw, position + 2)
        yield marker, raw[position + 4 : position + 2 + length]
        if marker == 0xDA:
            return
        position += 2 + length
    raise damaged(name, "The JPEG file ends before its picture begins.", where=f"byte {len(raw)}")


def _read_jpeg_header(raw: bytes, name: str) -> ImageHeader:
    orientation = 1
    for marker, payload in jpeg_segments(raw, name):
        if marker == 0xE1 and payload.startswith(b"Exif\0\0"):
            orientation = exif_orientation(payload[6:])
        # SOF0 to SOF15 without DHT (C4), JPG (C8) and DAC (CC), which share the range.
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            if len(payload) < 6:
                raise damaged(name, "The JPEG frame header is too short.")
            bits, height, width, components = struct.unpack_from(">BHHB", payload)
            if bits != 8:
                raise _refuse_depth(name, f"{bits} bits a channel")
            if components not in (1, 3):
                raise _refuse_colour(name, "CMYK" if components == 4 else f"{components}-channel")
            if not width or not height:
                raise damaged(name, f"The header says {width}x{height} px.")
            return _oriented("jpeg", width, height, components, 8, orientation, is_lossy=True)
    raise damaged(name, "The JPEG file has no frame header.")


def _read_png_header(raw: bytes, name: str) -> ImageHeader:
    if len(raw) < 33 or raw[12:16] != b"IHDR":
        raise damaged(name, "The PNG file ends inside its header.", where=f"byte {len(raw)}")
    width, height, bits, colour = struct.unpack_from(">IIBB", raw, 16)
    if not width or not height:
        raise damaged(name, f"The header says {width}x{height} px.")
    channels = 1 if colour in (0, 4) else 3
    orientation = 1
    for kind, payload in png_chunks(raw):
        if kind == b"PLTE" and colour == 3:
            channels = 1 if _is_grey(payload, stride=3) else 3
        elif kind == b"eXIf":
            orientation = exif_orientation(payload)
    return _oriented("png", width, height, channels, 16 if bits == 16 else 8, orientation)


def png_chunks(raw: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield (type, payload) of each whole chunk; the payload of picture data is left out."""
    position = len(PNG_SIGNATURE)
    while position + 8 <= len(raw):
        length, kind = struct.unpack_from(">I4s", raw, position)
        end = position + 8 + length
        if end + 4 > len(raw):
            return
        yield kind, b"" if kind == b"IDAT" else raw[position + 8 : end]
        position = end + 4


def _read_bmp_header(raw: bytes, name: str) -> ImageHeader:
    if len(raw) < 54:
        raise damaged(name, "The BMP file ends inside its header.", where=f"byte {len(raw)}")
    offset, info_size, width, height = struct.unpack_from("<IIii", raw, 10)
    bits, compression = struct.unpack_from("<HI", raw, 28)
    if info_size < 40:
        raise damaged(name, "The BMP file has an OS/2 header from before 1990.")
    height = abs(height)
    if width <= 0 or not height:
        raise damaged(name, f"The header says {width}x{height} px.")
    if bits not in (1, 4, 8, 24, 32):
        raise _refuse_depth(name, f"{bits} bits a pixel")
    if compression not in (0, 3):
        raise _refuse_compression(name, f"BMP method {compression}")
    needed = offset + (width * bits + 31) // 32 * 4 * height
    if len(raw) < needed:
        raise damaged(
            name,
            f"The BMP file is cut off: {width}x{height} px at {bits} bits need {needed} bytes.",
            where=f"byte {len(raw)}",
        )
    channels = 3
    if bits <= 8:
        entries = min(struct.unpack_from("<I", raw, 46)[0] or 1 << bits, 1 << bits)
        palette = raw[14 + info_size : 14 + info_size + 4 * entries]
        channels = 1 if _is_grey(palette, stride=4) else 3
    return _oriented("bmp", width, height, channels, 8, 1)


def _is_grey(palette: bytes, *, stride: int) -> bool:
    return palette[0::stride] == palette[1::stride] == palette[2::stride]


def _refuse_compression(name: str, found: str) -> ImageError:
    return ImageError(
        "image_compression",
        f"The picture is compressed with {found}, where damage can't be detected.",
        file=name,
        hint="Save it uncompressed, or with LZW or Deflate, or as PNG.",
    )


def _read_tiff_header(raw: bytes, name: str) -> ImageHeader:
    import tifffile

    try:
        with tifffile.TiffFile(io.BytesIO(raw)) as file:
            pages = len(file.pages)
            page: Any = file.pages[0] if pages else None
            if page is None or pages == 1:
                return _describe_tiff_page(page, raw, name)
    except TIFF_FAILURES as error:
        raise damaged(name, f"The TIFF header is damaged: {error}.") from error
    raise ImageError(
        "image_multipage",
        f"The TIFF file holds {pages} pages; a frame is one picture.",
        file=name,
        hint="Export each page as a file of its own.",
    )


def _describe_tiff_page(page: Any, raw: bytes, name: str) -> ImageHeader:
    sides = (page.imagewidth, page.imagelength) if page is not None else ()
    # A damaged tag gives bytes or text here.
    if not sides or not all(isinstance(side, int) and side > 0 for side in sides):
        raise damaged(name, "The TIFF file holds no picture.")
    if page.imagedepth != 1:
        raise _refuse_colour(name, "a volume")
    compression = getattr(page.compression, "name", str(page.compression))
    if compression not in _TIFF_COMPRESSIONS:
        raise _refuse_compression(name, f"TIFF {compression.lower()}")
    colour = getattr(page.photometric, "name", str(page.photometric))
    if colour not in _TIFF_COLOURS:
        raise _refuse_colour(name, f"TIFF {colour.lower()}")
    if page.bitspersample not in (8, 16) or int(page.sampleformat) != 1:
        kind = {1: "unsigned integers", 2: "signed integers", 3: "floating-point numbers"}
        described = kind.get(int(page.sampleformat), "numbers of an unknown kind")
        raise _refuse_depth(name, f"{page.bitspersample}-bit {described}")
    channels = _TIFF_COLOURS[colour]
    if page.samplesperpixel - len(page.extrasamples) != channels:
        raise _refuse_colour(name, f"a TIFF of {page.samplesperpixel} channels")
    _check_tiff_segments(page, raw, name)
    tag = page.tags.get(274)
    orientation = int(tag.value) if tag is not None and 1 <= int(tag.value) <= 8 else 1
    return _oriented(
        "tiff", page.imagewidth, page.imagelength, channels, page.bitspersample, orientation
    )


def _check_tiff_segments(page: Any, raw: bytes, name: str) -> None:
    """Refuse a page whose strips or tiles are not all in the file: tifffile leaves them black."""
    segments = list(zip(page.dataoffsets, page.databytecounts, strict=False))
    inside = all(
        offset > 0 and count > 0 and offset + count <= len(raw) for offset, count in segments
    )
    if not inside or len(segments) < math.prod(page.chunked):
        raise damaged(name, "The TIFF file is cut off: some of its picture data are missing.")
    # A tile is allocated whole, whatever part of it lies inside the picture.
    if math.prod(page.chunks) > 16 * max(page.imagewidth * page.imagelength, 1_000_000):
        raise damaged(name, f"The TIFF file's tiles of {page.chunks} px exceed the picture.")


def _read_webp_header(raw: bytes, name: str) -> ImageHeader:
    # The container is described in RFC 9649, section 2.
    chunks = dict(_webp_chunks(raw, name))
    extended = chunks.get(b"VP8X", b"")
    if b"ANMF" in chunks or b"ANIM" in chunks or (extended and extended[0] & _WEBP_ANIMATION):
        raise ImageError(
            "image_multipage",
            "The WebP file is an animation; a frame is one picture.",
            file=name,
            hint="Export each of its pictures as a file of its own.",
        )
    is_lossy = b"VP8 " in chunks
    width, height = _webp_size(chunks, name)
    if extended:
        canvas = tuple(
            1 + int.from_bytes(extended[start : start + 3], "little") for start in (4, 7)
        )
        if canvas != (width, height):
            raise damaged(
                name, f"The WebP file says {canvas[0]}x{canvas[1]} and {width}x{height} px."
            )
    orientation = exif_orientation(chunks.get(b"EXIF", b"").removeprefix(b"Exif\0\0"))
    return _oriented("webp", width, height, 3, 8, orientation, is_lossy=is_lossy)


def _webp_chunks(raw: bytes, name: str) -> Iterator[tuple[bytes, bytes]]:
    """Yield (type, payload) of each chunk; all that the file promises must be there."""
    end = 8 + int.from_bytes(raw[4:8], "little")
    if len(raw) < end:
        raise damaged(
            name, f"The WebP file is cut off: it has {end} bytes.", where=f"byte {len(raw)}"
        )
    position = 12
    while position < end:
        kind = raw[position : position + 4]
        length = int.from_bytes(raw[position + 4 : position + 8], "little")
        begin, position = position + 8, position + 8 + length + length % 2
        if position > end:
            raise damaged(name, "A WebP chunk is cut off.", where=f"byte {begin - 8}")
        yield kind, raw[begin : begin + length]


def _webp_size(chunks: Mapping[bytes, bytes], name: str) -> tuple[int, int]:
    lossy, lossless = chunks.get(b"VP8 ", b""), chunks.get(b"VP8L", b"")
    if bool(lossy) is bool(lossless):
        raise damaged(name, "The WebP file holds no picture, or two.")
    if lossy[3:6] == b"\x9d\x01\x2a" and len(lossy) >= 10:
        # Two bits above each side are for upscaling, which no decoder does (RFC 6386, 9.1).
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", lossy, 6))
    elif lossless[:1] == b"\x2f" and len(lossless) >= 5:
        bits = int.from_bytes(lossless[1:5], "little")
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    else:
        raise damaged(name, "The WebP picture's header is damaged.")
    if not width or not height:
        raise damaged(name, f"The header says {width}x{height} px.")
    return width, height


def _oriented(
    kind: ImageFormat,
    width: int,
    height: int,
    channels: int,
    bits: int,
    orientation: int,
    *,
    is_lossy: bool = False,
) -> ImageHeader:
    # Orientations 5 to 8 turn the picture by a quarter.
    if orientation >= 5:
        width, height = height, width
    return ImageHeader(
        kind,
        width,
        height,
        1 if channels == 1 else 3,
        16 if bits == 16 else 8,
        orientation,
        is_lossy,
    )
