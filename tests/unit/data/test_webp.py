"""WebP frames: RFC 9649's container around a lossy (VP8) or lossless (VP8L) picture."""

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data import ImageError, LabelError, PixelLimits, decode_image, read_header, read_mask
from data.layout import sample_key
from tests.corpus.entries import pillow

COLOUR = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
RGBA = np.dstack([COLOUR, np.full(COLOUR.shape[:2], 7, np.uint8)])


def webp(pixels: Any, **options: Any) -> bytes:
    return pillow(pixels, "WEBP", **options)


def oriented(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[274] = orientation
    return webp(COLOUR, lossless=True, exif=exif)


VALID = {
    "lossless": webp(COLOUR, lossless=True),
    "lossy": webp(COLOUR),
    "lossless alpha": webp(RGBA, lossless=True, exact=True),
    "lossy alpha": webp(RGBA),
    "exif": oriented(6),
}


def test_a_lossless_frame_gives_back_every_bit() -> None:
    decoded = decode_image(VALID["lossless"], name="frame.webp")
    np.testing.assert_array_equal(decoded.pixels, COLOUR)
    assert decoded.notes == ()


def test_a_lossy_frame_stays_near_its_source() -> None:
    smooth = np.linspace(0, 255, 80, dtype=np.uint8)[None, :, None].repeat(60, 0).repeat(3, 2)
    decoded = decode_image(webp(smooth, quality=95), name="frame.webp").pixels
    assert np.abs(decoded.astype(int) - smooth).max() < 10


@pytest.mark.parametrize("name", VALID)
def test_a_header_promises_what_decoding_delivers(name: str) -> None:
    header = read_header(VALID[name], name="frame")
    pixels = decode_image(VALID[name], name="frame").pixels
    assert pixels.shape == (header.height, header.width, 3)
    assert (header.format, header.bit_depth) == ("webp", 8)
    assert pixels.dtype == np.uint8
    assert header.is_lossy is name.startswith("lossy")


def test_alpha_is_dropped_and_noted() -> None:
    decoded = decode_image(VALID["lossless alpha"], name="frame.webp")
    np.testing.assert_array_equal(decoded.pixels, COLOUR)
    assert decoded.notes == ("alpha channel dropped",)


def test_exif_orientation_is_applied() -> None:
    decoded = decode_image(VALID["exif"], name="frame.webp")
    np.testing.assert_array_equal(decoded.pixels, np.rot90(COLOUR, -1))
    assert decoded.notes == ("EXIF orientation 6 applied",)


@pytest.mark.parametrize("name", VALID)
def test_a_file_cut_off_anywhere_is_refused_with_its_place(name: str) -> None:
    raw = VALID[name]
    for length in (13, 25, 40, len(raw) // 2, len(raw) - 1):
        with pytest.raises(ImageError) as caught:
            decode_image(raw[:length], name="frame.webp")
        assert (caught.value.code, caught.value.where) == ("image_damaged", f"byte {length}")


@pytest.mark.parametrize("kind", ["lossless", "lossy"])
def test_a_picture_that_ends_early_is_refused_though_its_container_is_whole(kind: str) -> None:
    raw = VALID[kind]
    for share in (0.1, 0.5, 0.9):
        length = int(len(raw[20:]) * share) // 2 * 2
        cut = struct.pack("<4sI4s4sI", b"RIFF", 12 + length, b"WEBP", raw[12:16], length)
        with pytest.raises(ImageError) as caught:
            decode_image(cut + raw[20 : 20 + length], name="frame.webp")
        assert caught.value.code == "image_damaged"


def test_an_animation_is_refused_with_a_reason() -> None:
    raw = webp(COLOUR, save_all=True, append_images=[Image.fromarray(255 - COLOUR)])
    with pytest.raises(ImageError, match="animation") as caught:
        decode_image(raw, name="frame.webp")
    assert caught.value.code == "image_multipage"


def test_a_size_that_the_container_contradicts_is_refused() -> None:
    raw = bytearray(VALID["lossy alpha"])
    raw[24:27] = (9999).to_bytes(3, "little")
    with pytest.raises(ImageError, match="10000x60 and 80x60"):
        decode_image(bytes(raw), name="frame.webp")


@pytest.mark.parametrize("name", VALID)
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_random_damage_gives_a_picture_or_an_image_error_and_nothing_else(
    name: str, data: st.DataObject
) -> None:
    raw = bytearray(VALID[name])
    where = st.one_of(st.integers(0, 60), st.integers(0, len(raw) - 1))
    for position in data.draw(st.lists(where, min_size=1, max_size=6)):
        raw[position] = data.draw(st.integers(0, 255))
    try:
        decoded = decode_image(bytes(raw), name="frame", limits=PixelLimits(1_000_000, 4096, 1))
    except ImageError:
        return
    assert decoded.pixels.ndim == 3


def test_a_lossless_mask_is_read_and_a_lossy_one_refused() -> None:
    mask = np.zeros((60, 80, 3), np.uint8)
    mask[10:20, 30:40] = 2
    read = read_mask(webp(mask, lossless=True), name="m.webp", classes=["scratch", "pit"])
    np.testing.assert_array_equal(read, mask[:, :, 0])
    with pytest.raises(LabelError, match="lossy WebP") as caught:
        read_mask(webp(mask), name="m.webp", classes=["scratch", "pit"])
    assert caught.value.code == "mask_lossy"


def test_webp_names_are_pictures_and_masks_like_any_others() -> None:
    assert (sample_key("images/a.WebP").kind, sample_key("images/a.WebP").key) == ("image", "a")
    assert (sample_key("masks/a.webp").kind, sample_key("masks/a.webp").key) == ("mask", "a")
