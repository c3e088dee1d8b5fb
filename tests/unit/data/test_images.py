import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data import ImageError, PixelLimits, decode_image, read_header
from tests.corpus.entries import pillow, png, tiff

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (60, 80, 3), dtype=np.uint8)
MONO = COLOUR[:, :, 0].copy()
MONO16 = RNG.integers(0, 65536, (60, 80), dtype=np.uint16)
COLOUR16 = RNG.integers(0, 65536, (60, 80, 3), dtype=np.uint16)

LOSSLESS: dict[str, tuple[bytes, Any]] = {
    "png mono": (png(MONO), MONO),
    "png colour": (png(COLOUR), COLOUR),
    "png mono 16": (png(MONO16), MONO16),
    "png colour 16": (png(COLOUR16), COLOUR16),
    "bmp mono": (pillow(MONO, "BMP"), MONO),
    "bmp colour": (pillow(COLOUR, "BMP"), COLOUR),
    "tiff mono": (tiff(MONO, photometric="minisblack"), MONO),
    "tiff mono 16": (tiff(MONO16, photometric="minisblack"), MONO16),
    "tiff big-endian 16": (tiff(MONO16, photometric="minisblack", byteorder=">"), MONO16),
    "tiff colour": (tiff(COLOUR, photometric="rgb"), COLOUR),
    "tiff colour 16 lzw": (tiff(COLOUR16, photometric="rgb", compression="lzw"), COLOUR16),
    "tiff deflate predictor": (
        tiff(COLOUR, photometric="rgb", compression="deflate", predictor=True),
        COLOUR,
    ),
    "tiff tiles": (tiff(COLOUR, photometric="rgb", tile=(32, 32)), COLOUR),
    "tiff planar": (
        tiff(np.moveaxis(COLOUR, -1, 0), photometric="rgb", planarconfig="separate"),
        COLOUR,
    ),
}
LOSSY = {
    "jpeg colour": pillow(COLOUR, "JPEG", quality=95),
    "jpeg progressive": pillow(COLOUR, "JPEG", progressive=True),
    "jpeg mono": pillow(MONO, "JPEG"),
}
VALID = {**{name: raw for name, (raw, _) in LOSSLESS.items()}, **LOSSY}


@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_formats_give_back_every_bit(name: str) -> None:
    raw, pixels = LOSSLESS[name]
    decoded = decode_image(raw, name="frame")
    assert decoded.pixels.dtype == pixels.dtype
    np.testing.assert_array_equal(decoded.pixels, pixels)
    assert decoded.notes == ()


@pytest.mark.parametrize("name", VALID)
def test_a_header_promises_what_decoding_delivers(name: str) -> None:
    header = read_header(VALID[name], name="frame")
    pixels = decode_image(VALID[name], name="frame").pixels
    assert pixels.shape[:2] == (header.height, header.width)
    assert header.channels == (1 if pixels.ndim == 2 else 3)
    assert header.bit_depth == 8 * pixels.dtype.itemsize
    assert name.startswith(header.format)


@pytest.mark.parametrize("name", VALID)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 0.99])
def test_a_file_that_was_cut_off_is_refused_in_every_format(name: str, share: float) -> None:
    raw = VALID[name]
    # tifffile writes its directory first, so the pixels are what is missing at the end.
    with pytest.raises(ImageError) as caught:
        decode_image(raw[: int(len(raw) * share)], name="cut.raw")
    assert caught.value.code == "image_damaged"
    assert caught.value.file == "cut.raw"
    assert caught.value.hint


@pytest.mark.parametrize("name", ["png mono", "jpeg colour", "jpeg progressive", "bmp mono"])
def test_the_last_byte_counts(name: str) -> None:
    with pytest.raises(ImageError):
        decode_image(VALID[name][:-1], name="frame")


def test_one_flipped_bit_in_a_png_is_found() -> None:
    raw = bytearray(png(COLOUR))
    raw[len(raw) // 2] ^= 1
    with pytest.raises(ImageError, match="checksum"):
        decode_image(bytes(raw), name="frame.png")


@pytest.mark.parametrize("name", VALID)
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_random_damage_gives_a_picture_or_an_image_error_and_nothing_else(
    name: str, data: st.DataObject
) -> None:
    raw = bytearray(VALID[name])
    # The head decides everything, so half of the damage goes there.
    where = st.one_of(st.integers(0, 200), st.integers(0, len(raw) - 1))
    for position in data.draw(st.lists(where, min_size=1, max_size=6)):
        raw[position] = data.draw(st.integers(0, 255))
    try:
        decoded = decode_image(bytes(raw), name="frame", limits=PixelLimits(1_000_000, 4096, 1))
    except ImageError:
        return
    assert decoded.pixels.size > 0


@given(raw=st.binary(max_size=300))
def test_arbitrary_bytes_are_refused_with_the_file_named(raw: bytes) -> None:
    with pytest.raises(ImageError) as caught:
        decode_image(raw, name="x.png")
    assert caught.value.file == "x.png"


def declared_png(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunks


def declared_bmp(width: int, height: int) -> bytes:
    head = b"BM" + struct.pack("<IIIIiiHHIIiiII", 0, 0, 54, 40, width, height, 1, 24, *[0] * 6)
    return head.ljust(64, b"\0")


@pytest.mark.parametrize(
    ("width", "height", "code"),
    [
        (40_000, 40_000, "image_too_large"),
        (33_000, 10, "image_too_large"),
        (20_000, 20_000, "image_too_large"),
        (1, 1, "image_too_small"),
        (2500, 31, "image_too_small"),
    ],
)
def test_a_size_is_refused_from_the_header_alone(width: int, height: int, code: str) -> None:
    with pytest.raises(ImageError) as caught:
        decode_image(declared_png(width, height), name="frame.png")
    assert caught.value.code == code
    assert f"{width}x{height}" in caught.value.detail


def test_an_empty_file_is_called_empty() -> None:
    with pytest.raises(ImageError) as caught:
        decode_image(b"", name="frame.jpg")
    assert caught.value.code == "image_empty"


@pytest.mark.parametrize(
    ("raw", "looks_like"),
    [
        (b"hello, this is no picture\n", "text"),
        (b'{"shapes": []}', "JSON"),
        (b"GIF89a\x01\x00\x01\x00", "GIF"),
        (b"%PDF-1.7", "PDF"),
        (b"PK\x03\x04....", "zip"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b"\0" * 100, "zeros"),
    ],
)
def test_what_is_no_picture_is_called_what_it_looks_like(raw: bytes, looks_like: str) -> None:
    with pytest.raises(ImageError, match=looks_like) as caught:
        decode_image(raw, name="frame.png")
    assert caught.value.code == "image_unknown_format"


def test_a_png_named_jpg_is_read_and_noted() -> None:
    decoded = decode_image(png(MONO), name="frame.jpg")
    assert decoded.notes == ("named .jpg but is PNG; read as PNG",)


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (pillow(COLOUR, "JPEG", "CMYK"), "image_colour_space"),
        (tiff(MONO.astype(np.float32), photometric="minisblack"), "image_bit_depth"),
        (tiff(MONO.astype(np.int16), photometric="minisblack"), "image_bit_depth"),
        (tiff(np.stack([MONO] * 2), photometric="minisblack"), "image_multipage"),
        (tiff(COLOUR, photometric="rgb", compression="jpeg"), "image_compression"),
    ],
)
def test_what_can_not_be_decoded_faithfully_is_refused_with_a_remedy(raw: bytes, code: str) -> None:
    with pytest.raises(ImageError) as caught:
        decode_image(raw, name="frame")
    assert caught.value.code == code
    assert caught.value.hint


def test_alpha_is_dropped_and_noted() -> None:
    rgba = np.dstack([COLOUR, np.full(MONO.shape, 7, np.uint8)])
    grey_alpha = np.dstack([MONO, MONO])
    for raw, pixels in (
        (png(rgba), COLOUR),
        (png(grey_alpha), MONO),
        (tiff(rgba, photometric="rgb", extrasamples=["unassalpha"]), COLOUR),
    ):
        decoded = decode_image(raw, name="frame")
        np.testing.assert_array_equal(decoded.pixels, pixels)
        assert decoded.notes == ("alpha channel dropped",)


def test_a_palette_is_expanded_and_one_of_greys_is_mono() -> None:
    coloured = Image.fromarray(COLOUR).quantize(16)
    buffer = io.BytesIO()
    coloured.save(buffer, "PNG")
    decoded = decode_image(buffer.getvalue(), name="frame")
    np.testing.assert_array_equal(decoded.pixels, np.asarray(coloured.convert("RGB")))
    assert decoded.notes == ("palette expanded",)
    # An 8-bit BMP always has a palette; a camera's is the ramp of greys.
    assert decode_image(pillow(MONO, "BMP"), name="frame").pixels.ndim == 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_exif_orientation_is_applied_as_the_standard_says(kind: str, orientation: int) -> None:
    pixels = np.kron(np.arange(12, dtype=np.uint8).reshape(3, 4) * 20, np.ones((16, 16), np.uint8))
    exif = Image.Exif()
    exif[274] = orientation
    raw = pillow(pixels, kind, exif=exif)
    decoded = decode_image(raw, name="frame")
    transposed = Image.fromarray(pixels)
    if orientation > 1:
        method = [
            Image.Transpose.FLIP_LEFT_RIGHT,
            Image.Transpose.ROTATE_180,
            Image.Transpose.FLIP_TOP_BOTTOM,
            Image.Transpose.TRANSPOSE,
            Image.Transpose.ROTATE_270,
            Image.Transpose.TRANSVERSE,
            Image.Transpose.ROTATE_90,
        ][orientation - 2]
        transposed = transposed.transpose(method)
    difference = np.asarray(transposed).astype(int) - decoded.pixels.astype(int)
    assert abs(difference).max() <= 2, "JPEG keeps flat blocks of 16 px within 2 grey levels"
    assert any("EXIF" in note for note in decoded.notes) is (orientation > 1)
    header = read_header(raw, name="frame")
    assert (header.height, header.width) == decoded.pixels.shape


def test_a_camera_bmp_that_is_stored_top_down_is_read() -> None:
    raw = bytearray(pillow(COLOUR, "BMP"))
    (height,) = struct.unpack_from("<i", raw, 22)
    struct.pack_into("<i", raw, 22, -height)
    np.testing.assert_array_equal(decode_image(bytes(raw), name="frame").pixels, COLOUR[::-1])


def test_a_bomb_of_a_bmp_is_refused_before_anything_is_allocated() -> None:
    with pytest.raises(ImageError):
        decode_image(declared_bmp(2_000_000_000, 2_000_000_000), name="frame.bmp")


@pytest.mark.datasets
def test_every_real_picture_is_read_without_a_note(datasets_dir: Path) -> None:
    sets = ("bsdata", "weld_seg", "deeppcb", "hripcb")
    paths = [path for name in sets for path in (datasets_dir / name).rglob("*.[jJ][pP][gG]")]
    assert len(paths) == 589
    for path in paths[::3]:
        assert decode_image(path.read_bytes(), name=path.name).notes == ()


def encoders() -> dict[str, Callable[[Any], bytes]]:
    return {
        "png": png,
        "tiff": lambda pixels: tiff(
            pixels, photometric="rgb" if pixels.ndim == 3 else "minisblack"
        ),
    }


@given(
    width=st.integers(32, 70),
    height=st.integers(32, 70),
    colour=st.booleans(),
    deep=st.booleans(),
    kind=st.sampled_from(["png", "tiff"]),
)
@settings(max_examples=30, deadline=None)
def test_any_size_and_depth_survives(
    width: int, height: int, colour: bool, deep: bool, kind: str
) -> None:
    shape = (height, width, 3) if colour else (height, width)
    dtype = np.uint16 if deep else np.uint8
    pixels = np.random.default_rng(width).integers(0, np.iinfo(dtype).max, shape, dtype=dtype)
    np.testing.assert_array_equal(
        decode_image(encoders()[kind](pixels), name="frame").pixels, pixels
    )


@pytest.mark.parametrize("kept_rows", [1, 30, 59])
def test_a_png_whose_rows_end_early_is_refused_though_its_checksums_match(kept_rows: int) -> None:
    def chunk(kind: bytes, payload: bytes) -> bytes:
        return (
            struct.pack(">I", len(payload))
            + kind
            + payload
            + struct.pack(">I", zlib.crc32(kind + payload))
        )

    rows = b"".join(b"\0" + row.tobytes() for row in MONO[:kept_rows])
    header = struct.pack(">IIBBBBB", 80, 60, 8, 0, 0, 0, 0)
    raw = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows))
    with pytest.raises(ImageError) as caught:
        decode_image(raw + chunk(b"IEND", b""), name="frame.png")
    assert caught.value.code == "image_damaged"


def test_a_tiff_whose_strips_are_not_in_the_file_is_refused() -> None:
    raw = bytearray(tiff(MONO, photometric="minisblack"))
    with tifffile.TiffFile(io.BytesIO(bytes(raw))) as file:
        position = file.pages[0].tags["StripByteCounts"].valueoffset
    struct.pack_into("<I", raw, position, 0)
    with pytest.raises(ImageError, match="missing"):
        decode_image(bytes(raw), name="frame.tif")
