"""Broken pictures, and files that only bear a picture's name."""

import struct

import numpy as np
from PIL import Image

from tests.corpus.entries import (
    COLOUR,
    HEIGHT,
    MONO,
    WIDTH,
    BrokenFile,
    bmp_of,
    flipped,
    patched,
    pillow,
    png,
    png_of,
    tiff,
    webp_of,
)

_JPEG = pillow(COLOUR, "JPEG", quality=90)
_SOF = _JPEG.index(b"\xff\xc0")
_PROGRESSIVE = pillow(COLOUR, "JPEG", progressive=True)
_PNG = png(COLOUR)
_BMP = pillow(COLOUR, "BMP")
_TIFF = tiff(MONO, photometric="minisblack")
_TIFF_LZW = tiff(MONO, photometric="minisblack", compression="lzw")
_WEBP = pillow(COLOUR, "WEBP", lossless=True)
_PNG_DATA = _PNG.index(b"IDAT")

_COPY, _UPLOAD, _RGB, _DEPTH = "Copy it again", "picture itself", "as mono or RGB", "8 or 16 bits"
_PAGES, _CUT, _FULL, _PLAIN = "a file of its own", "Cut it into frames", "full frame", "or as PNG"


def _damaged(name: str, content: bytes, where: str = "whole file") -> BrokenFile:
    return BrokenFile(name, content, "image_damaged", where, _COPY)


def _refused(name: str, content: bytes, code: str, hint: str) -> BrokenFile:
    return BrokenFile(name, content, code, "whole file", hint)


def _no_mosaic(name: str, content: bytes, code: str, hint: str) -> BrokenFile:
    return BrokenFile(name, content, code, "whole file", hint, bayer="RGGB")


def _stranger(content: bytes, name: str = "a.png") -> BrokenFile:
    return _refused(name, content, "image_unknown_format", _UPLOAD)


def _tag(raw: bytes, tag: int) -> int:
    """Return where a little-endian TIFF's directory keeps a tag's value."""
    (start,) = struct.unpack_from("<I", raw, 4)
    (count,) = struct.unpack_from("<H", raw, start)
    for entry in range(start + 2, start + 2 + 12 * count, 12):
        if struct.unpack_from("<H", raw, entry) == (tag,):
            return int(entry) + 8
    raise LookupError(tag)


def _animation() -> bytes:
    return pillow(COLOUR, "WEBP", save_all=True, append_images=[Image.fromarray(255 - COLOUR)])


def _absurd_tiles() -> bytes:
    raw = tiff(MONO, photometric="minisblack", tile=(32, 32))
    return patched(patched(raw, _tag(raw, 322), "<H", 65520), _tag(raw, 323), "<H", 65520)


_TURNED = Image.Exif()
_TURNED[274] = 6

BROKEN_PICTURES = {
    "jpeg_cut_in_its_header": _damaged("a.jpg", _JPEG[:50], "byte 50"),
    "jpeg_cut_at_a_third": _damaged("a.jpg", _JPEG[: len(_JPEG) // 3]),
    "jpeg_without_its_last_byte": _damaged("a.jpg", _JPEG[:-1]),
    "jpeg_progressive_cut_at_nine_tenths": _damaged(
        "a.jpg", _PROGRESSIVE[: len(_PROGRESSIVE) * 9 // 10]
    ),
    "jpeg_with_a_garbled_marker": _damaged("a.jpg", patched(_JPEG, _SOF, "B", 0), f"byte {_SOF}"),
    "jpeg_of_0_px": _damaged("a.jpg", patched(_JPEG, _SOF + 5, ">H", 0)),
    "jpeg_of_65535_px": _refused(
        "a.jpg", patched(_JPEG, _SOF + 5, ">HH", 65535, 65535), "image_too_large", _CUT
    ),
    "jpeg_of_12_bits": _refused(
        "a.jpg", patched(_JPEG, _SOF + 4, "B", 12), "image_bit_depth", _DEPTH
    ),
    "jpeg_in_cmyk": _refused("a.jpg", pillow(COLOUR, "JPEG", "CMYK"), "image_colour_space", _RGB),
    "jpeg_of_two_channels": _refused(
        "a.jpg", patched(_JPEG, _SOF + 9, "B", 2), "image_colour_space", _RGB
    ),
    "jpeg_of_no_frame": _damaged("a.jpg", b"\xff\xd8\xff\xda\x00\x02" + b"\0" * 64),
    "png_cut_in_its_header": _damaged("a.png", _PNG[:20], "byte 20"),
    "png_cut_in_half": _damaged("a.png", _PNG[: len(_PNG) // 2], f"byte {len(_PNG) // 2}"),
    "png_without_its_end": _damaged("a.png", _PNG[:-12], f"byte {len(_PNG) - 12}"),
    "png_with_a_flipped_bit": _damaged(
        "a.png", flipped(_PNG, _PNG_DATA + 100), f"byte {_PNG_DATA - 4}"
    ),
    "png_with_a_wrong_header_crc": _damaged("a.png", flipped(_PNG, 29), "byte 8"),
    "png_whose_rows_end_early": _damaged("a.png", png_of(WIDTH, HEIGHT, b"\0" * 500)),
    "png_of_0_px": _damaged("a.png", png_of(0, HEIGHT)),
    "png_of_4_gigapixels": _refused("a.png", png_of(2**31 - 1, 2), "image_too_large", _CUT),
    "png_of_400_megapixels": _refused("a.png", png_of(20000, 20000), "image_too_large", _CUT),
    "png_of_100_megapixels_and_no_row": _damaged("a.png", png_of(10000, 10000)),
    "png_of_4_megapixels_without_the_last_row": _damaged(
        "a.png", png_of(2000, 2000, bytes(2001 * 1999))
    ),
    "png_of_one_pixel": _refused("a.png", png_of(1, 1, b"\0\0"), "image_too_small", _FULL),
    "bmp_cut_in_its_header": _damaged("a.bmp", _BMP[:40], "byte 40"),
    "bmp_without_its_last_row": _damaged("a.bmp", _BMP[:-288], f"byte {len(_BMP) - 288}"),
    "bmp_of_gigapixels": _damaged("a.bmp", bmp_of(2**31 - 1, 2**31 - 1), "byte 64"),
    "bmp_of_0_px": _damaged("a.bmp", bmp_of(0, HEIGHT)),
    "bmp_run_length": _refused(
        "a.bmp", bmp_of(WIDTH, HEIGHT, bits=8, method=1), "image_compression", _PLAIN
    ),
    "bmp_of_16_bits": _refused("a.bmp", bmp_of(WIDTH, HEIGHT, bits=16), "image_bit_depth", _DEPTH),
    "bmp_of_os2": _damaged("a.bmp", bmp_of(WIDTH, HEIGHT, info=12)),
    "tiff_of_floats": _refused(
        "a.tif", tiff(MONO.astype(np.float32), photometric="minisblack"), "image_bit_depth", _DEPTH
    ),
    "tiff_of_signed_integers": _refused(
        "a.tif", tiff(MONO.astype(np.int16), photometric="minisblack"), "image_bit_depth", _DEPTH
    ),
    "tiff_of_two_pages": _refused(
        "a.tif", tiff(np.stack([MONO] * 2), photometric="minisblack"), "image_multipage", _PAGES
    ),
    "tiff_with_jpeg_inside": _refused(
        "a.tif", tiff(COLOUR, photometric="rgb", compression="jpeg"), "image_compression", _PLAIN
    ),
    "tiff_in_cmyk": _refused("a.tif", pillow(COLOUR, "TIFF", "CMYK"), "image_colour_space", _RGB),
    "tiff_with_a_palette": _refused(
        "a.tif", pillow(COLOUR, "TIFF", "P"), "image_colour_space", _RGB
    ),
    "tiff_cut_in_half": _damaged("a.tif", _TIFF[: len(_TIFF) // 2]),
    "tiff_of_nothing_but_its_magic": _damaged("a.tif", b"II*\0"),
    "tiff_whose_directory_is_its_own_successor": _damaged("a.tif", b"II*\0\x08\0\0\0" * 8),
    "tiff_whose_strip_is_outside": _damaged("a.tif", patched(_TIFF, _tag(_TIFF, 273), "<I", 10**9)),
    "tiff_with_garbled_lzw": _damaged("a.tif", _TIFF_LZW[:-200] + b"\xff" * 200),
    "tiff_of_0_px": _damaged("a.tif", patched(_TIFF, _tag(_TIFF, 256), "<I", 0)),
    "tiff_of_absurd_tiles": _damaged("a.tif", _absurd_tiles()),
    "webp_cut_in_half": _damaged("a.webp", _WEBP[: len(_WEBP) // 2], f"byte {len(_WEBP) // 2}"),
    "webp_of_no_picture": _damaged("a.webp", webp_of(b"XMP ", b"text")),
    "webp_whose_picture_ends_early": _damaged("a.webp", webp_of(b"VP8L", _WEBP[20:120])),
    "webp_of_16383_px": _refused(
        "a.webp", webp_of(b"VP8L", b"\x2f\xfe\xff\xff\x0f"), "image_too_large", _CUT
    ),
    "webp_animation": _refused("a.webp", _animation(), "image_multipage", _PAGES),
    "raw_bayer_in_colour": _no_mosaic("a.png", _PNG, "bayer_colour", "mono PNG or TIFF"),
    "raw_bayer_as_webp": _no_mosaic("a.webp", _WEBP, "bayer_colour", "mono PNG or TIFF"),
    "raw_bayer_of_odd_width": _no_mosaic("a.png", png(MONO[:, 1:]), "bayer_odd_size", "even sides"),
    "raw_bayer_of_odd_height": _no_mosaic("a.tif", tiff(MONO[1:]), "bayer_odd_size", "even sides"),
    "raw_bayer_turned": _no_mosaic(
        "a.jpg", pillow(MONO, "JPEG", exif=_TURNED), "bayer_turned", "orientation tag"
    ),
    "empty_file": _refused("a.png", b"", "image_empty", _COPY),
    "gif": _stranger(pillow(MONO, "GIF")),
    "heic": _stranger(b"\0\0\0\x18ftypheic" + b"\0" * 40, "a.jpg"),
    "jpeg_2000": _stranger(pillow(COLOUR, "JPEG2000"), "a.jpg"),
    "pdf": _stranger(b"%PDF-1.7\n%", "a.jpg"),
    "web_page": _stranger(b"<!DOCTYPE html><html><body>404</body></html>", "a.jpg"),
    "lfs_pointer": _stranger(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
    "zip_named_png": _stranger(b"PK\x03\x04" + b"\0" * 30),
    "numpy_array": _stranger(b"\x93NUMPY\x01\0"),
    "json_named_png": _stranger(b'{"shapes": []}'),
    "zeros": _stranger(b"\0" * 5000, "a.bmp"),
    "noise": _stranger(bytes(MONO[0]) + b"\x01", "a.tif"),
}

BROKEN_NAMES = {
    "name_that_climbs": BrokenFile("../a.png", _PNG, "unsafe_name", "file name", "Rename"),
    "name_that_is_absolute": BrokenFile("/etc/a.png", _PNG, "unsafe_name", "file name", "Rename"),
    "name_of_a_drive": BrokenFile("C:/a.png", _PNG, "unsafe_name", "file name", "Rename"),
    "name_too_long": BrokenFile("x" * 300 + ".png", _PNG, "unsafe_name", "file name", "Rename"),
    "suffix_of_no_picture": BrokenFile("a.exe", _PNG, "unsupported_file", "file name", "Upload"),
}

# What looks broken and is not: the content decides, and a broken orientation is none.
_EXIF = pillow(COLOUR, "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")
TOLERATED = {
    "png_named_jpg": ("a.jpg", _PNG, ["named .jpg but is PNG; read as PNG"]),
    "exif_that_points_nowhere": ("a.png", _EXIF, []),
    "bytes_behind_a_png": ("a.png", _PNG + b"appended", []),
}
