"""A camera's buffer is read as the picture that it is, or refused with what does not fit."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.camera_buffers import PIXEL_FORMATS, BufferLayout, PixelFormat, decode_buffer
from data.errors import ImageError
from data.limits import PixelLimits
from tests.oracles.bayer import demosaiced

SMALL = PixelLimits(max_pixels=1_000_000, min_side_px=1)
FINISHED = [form for form in PIXEL_FORMATS.values() if form.bayer is None]


def _picture(form: PixelFormat, width: int, height: int, seed: int = 0) -> Any:
    kind = np.uint8 if form.depth_bits == 8 else np.uint16
    shape = (height, width) if form.order == "mono" else (height, width, 3)
    generator = np.random.default_rng(seed)
    return generator.integers(0, np.iinfo(kind).max, shape, dtype=kind, endpoint=True)


def _buffer(form: PixelFormat, picture: Any, padding: int, *, cut: bool) -> bytes:
    """Write rows one by one as a driver would, little-endian and padded."""
    rows = picture[:, :, ::-1] if form.order == "bgr" else picture
    written = [
        row.astype(f"<u{form.depth_bits // 8}").tobytes() + b"\xaa" * padding for row in rows
    ]
    whole = b"".join(written)
    return whole[: len(whole) - padding] if cut else whole


@given(
    st.sampled_from(FINISHED),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(0, 7),
    st.booleans(),
)
def test_every_format_is_read_as_it_was_written(
    form: PixelFormat, width: int, height: int, padding: int, cut: bool
) -> None:
    picture = _picture(form, width, height)
    stride = width * form.pixel_bytes + padding
    layout = BufferLayout(width, height, form.name, stride)

    read = decode_buffer(_buffer(form, picture, padding, cut=cut), layout, bayer=None, limits=SMALL)

    np.testing.assert_array_equal(read.pixels, picture)
    assert read.pixels.dtype == picture.dtype
    assert read.pixels.flags.c_contiguous
    assert read.notes == ()


@pytest.mark.parametrize(
    ("name", "pattern"),
    [("BayerRG8", "RGGB"), ("BayerGR16", "GRBG"), ("BayerGB8", "GBRG"), ("BayerBG16", "BGGR")],
)
def test_a_mosaic_is_demosaiced_by_the_pattern_that_the_format_names(
    name: str, pattern: Any
) -> None:
    mosaic = _picture(PIXEL_FORMATS[name], 8, 6)
    layout = BufferLayout(8, 6, name)

    read = decode_buffer(mosaic.tobytes(), layout, bayer=pattern, limits=SMALL)

    np.testing.assert_array_equal(read.pixels[1:-1, 1:-1], demosaiced(mosaic, pattern)[1:-1, 1:-1])
    assert read.notes == (f"Bayer {pattern} demosaiced",)
    mono = BufferLayout(8, 6, f"Mono{mosaic.dtype.itemsize * 8}")
    also = decode_buffer(mosaic.tobytes(), mono, bayer=pattern, limits=SMALL)
    np.testing.assert_array_equal(also.pixels, read.pixels)
    assert also.notes[0].startswith("Mono")


@pytest.mark.parametrize(
    ("layout", "bayer", "size", "code"),
    [
        (BufferLayout(8, 6, "Mono12p"), None, 48, "pixel_format_unknown"),
        (BufferLayout(8, 6, "mono8"), None, 48, "pixel_format_unknown"),
        (BufferLayout(8, 6, "Mono8"), None, 47, "buffer_size_mismatch"),
        (BufferLayout(8, 6, "Mono8"), None, 0, "buffer_size_mismatch"),
        (BufferLayout(8, 6, "Mono16"), None, 48, "buffer_size_mismatch"),
        (BufferLayout(8, 6, "RGB8", 23), None, 144, "stride_too_small"),
        (BufferLayout(8, 6, "BayerRG8"), None, 48, "bayer_not_declared"),
        (BufferLayout(8, 6, "BayerRG8"), "BGGR", 48, "bayer_other_pattern"),
        (BufferLayout(8, 6, "RGB8"), "RGGB", 144, "bayer_colour"),
        (BufferLayout(7, 6, "BayerRG8"), "RGGB", 42, "bayer_odd_size"),
        (BufferLayout(8_000, 8_000, "Mono8"), None, 0, "image_too_large"),
    ],
)
def test_what_does_not_fit_is_named_with_its_remedy(
    layout: BufferLayout, bayer: Any, size: int, code: str
) -> None:
    with pytest.raises(ImageError) as error:
        decode_buffer(bytes(size), layout, bayer=bayer, limits=SMALL)

    assert error.value.code == code
    assert error.value.hint
