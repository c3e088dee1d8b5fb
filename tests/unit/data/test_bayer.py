"""Raw Bayer frames become the colour picture that the sensor looked at, or are refused."""

import dataclasses
import io
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from data import (
    BAYER_PATTERNS,
    BayerPattern,
    FrameDataset,
    ImageError,
    Manifest,
    decode_frame,
    decode_image,
    import_folder,
)
from data.bayer import demosaic
from data.dataset import load_frame
from data.frame_cache import FrameCache
from tests.oracles.bayer import demosaiced, mosaic_of

HEIGHT, WIDTH = 48, 64
PATTERNS = pytest.mark.parametrize("pattern", BAYER_PATTERNS)
# Typed loosely: hypothesis knows no strategy for one of two dtypes.
ANY_DEPTH: Any = st.sampled_from([np.dtype(np.uint8), np.dtype(np.uint16)])
DEPTHS = pytest.mark.parametrize("dtype", [np.uint8, np.uint16])


def png(pixels: Any) -> bytes:
    return bytes(imagecodecs.png_encode(pixels))


def patches(dtype: Any) -> Any:
    """Four plain patches whose three channels all differ, the last one dark."""
    top = np.iinfo(dtype).max
    colours = np.array([[top, top // 3, 7], [5, top, top // 2], [top // 4, 9, top], [1, 2, 3]])
    halves = np.repeat(np.repeat(colours.reshape(2, 2, 3), HEIGHT // 2, 0), WIDTH // 2, 1)
    return halves.astype(dtype)


def inside(picture: Any) -> Any:
    """Cut away the patches' seams and nothing of the frame's border."""
    keep = [side for side in range(HEIGHT) if side not in (HEIGHT // 2 - 1, HEIGHT // 2)]
    columns = [side for side in range(WIDTH) if side not in (WIDTH // 2 - 1, WIDTH // 2)]
    return picture[keep][:, columns]


@PATTERNS
@DEPTHS
def test_a_known_colour_picture_comes_back_from_its_mosaic(
    pattern: BayerPattern, dtype: Any
) -> None:
    seen = patches(dtype)
    decoded = decode_frame(png(mosaic_of(seen, pattern)), name="a.png", bayer=pattern)
    assert decoded.pixels.dtype == dtype
    assert decoded.pixels.flags.c_contiguous
    assert decoded.notes == (f"Bayer {pattern} demosaiced",)
    np.testing.assert_array_equal(inside(decoded.pixels), inside(seen))


@PATTERNS
def test_a_mosaic_read_under_another_pattern_has_other_colours(pattern: BayerPattern) -> None:
    seen = patches(np.uint8)
    raw = png(mosaic_of(seen, pattern))
    for other in set(BAYER_PATTERNS) - {pattern}:
        wrong = decode_frame(raw, name="a.png", bayer=other).pixels
        assert not np.array_equal(inside(wrong), inside(seen))


@given(
    mosaic=arrays.arrays(
        ANY_DEPTH,
        st.tuples(st.sampled_from([4, 6, 8]), st.sampled_from([4, 6, 10])),
    ),
    pattern=st.sampled_from(BAYER_PATTERNS),
)
def test_missing_colours_are_the_rounded_means_of_the_pixels_around(
    mosaic: Any, pattern: BayerPattern
) -> None:
    np.testing.assert_array_equal(demosaic(mosaic, pattern), demosaiced(mosaic, pattern))


def test_sixteen_bits_keep_their_steps() -> None:
    ramp = np.arange(HEIGHT * WIDTH, dtype=np.uint16).reshape(HEIGHT, WIDTH) * 20
    grey = np.repeat(ramp[:, :, None], 3, axis=2)
    buffer = io.BytesIO()
    # Big-endian, as some cameras' software writes it.
    tifffile.imwrite(buffer, mosaic_of(grey, "GBRG"), byteorder=">", photometric="minisblack")
    pixels = decode_frame(buffer.getvalue(), name="a.tif", bayer="GBRG").pixels
    # Means along a ramp are the ramp itself, so that not one of the values is lost.
    np.testing.assert_array_equal(pixels[1:-1, 1:-1], grey[1:-1, 1:-1])


def test_without_a_declaration_a_mosaic_is_the_grey_picture_that_it_looks_like() -> None:
    raw = png(mosaic_of(patches(np.uint8), "RGGB"))
    plain, undeclared = decode_image(raw, name="a"), decode_frame(raw, name="a", bayer=None)
    np.testing.assert_array_equal(undeclared.pixels, plain.pixels)
    assert undeclared.notes == plain.notes == ()


def turned(mosaic: Any) -> bytes:
    exif = Image.Exif()
    exif[274] = 6
    buffer = io.BytesIO()
    Image.fromarray(mosaic).save(buffer, "PNG", exif=exif)
    return buffer.getvalue()


MOSAIC = mosaic_of(patches(np.uint8), "RGGB")


@pytest.mark.parametrize(
    ("raw", "code", "hint"),
    [
        (png(patches(np.uint8)), "bayer_colour", "mono PNG or TIFF"),
        (png(MOSAIC[1:]), "bayer_odd_size", "even"),
        (png(MOSAIC[:, 1:]), "bayer_odd_size", "even"),
        (turned(MOSAIC), "bayer_turned", "orientation tag"),
    ],
)
def test_a_picture_that_can_be_no_mosaic_is_refused_by_name(
    raw: bytes, code: str, hint: str
) -> None:
    with pytest.raises(ImageError, match="RGGB") as caught:
        decode_frame(raw, name="a.png", bayer="RGGB")
    assert (caught.value.code, caught.value.file) == (code, "a.png")
    assert hint in (caught.value.hint or "")


def test_a_mosaic_that_was_compressed_with_loss_is_read_and_said_to_be() -> None:
    buffer = io.BytesIO()
    Image.fromarray(MOSAIC).save(buffer, "JPEG", quality=100)
    notes = decode_frame(buffer.getvalue(), name="a.jpg", bayer="RGGB").notes
    assert notes[-1] == "lossy compression has mixed the mosaic's colours"


@DEPTHS
def test_training_sees_the_colours_and_the_stored_file_stays_a_mosaic(
    tmp_path: Path, dtype: Any
) -> None:
    seen = patches(dtype)
    raw = png(mosaic_of(seen, "GRBG"))
    (tmp_path / "a.png").write_bytes(raw)
    (item,) = import_folder(tmp_path, unlabelled="good", bayer="GRBG").items
    assert (item.channels, item.bit_depth) == (3, 8 * dtype().itemsize)
    items = (dataclasses.replace(item, split="train"),)
    manifest = Manifest("segmentation", ("pit",), items, bayer="GRBG")
    warnings: list[str] = []
    cache = FrameCache(tmp_path / "decoded", 10**8, lambda code, _: warnings.append(code))
    # The same file in a data set of plain mono frames has other pixels.
    plain = dataclasses.replace(items[0], channels=1)
    mono, _ = load_frame(plain, tmp_path, ("pit",), 1, bayer=None, cache=cache)
    assert mono.shape[2] == 1
    frames = FrameDataset(manifest, tmp_path, "train", seed=0, cache=cache)
    assert frames.channels == 3
    for epoch in range(2):
        pixels = frames.frame(0, epoch).pixels
        assert pixels.dtype == dtype
        np.testing.assert_array_equal(inside(pixels), inside(seen))
    assert (tmp_path / "a.png").read_bytes() == raw
    assert (cache.use().frames, warnings) == (2, [])


def test_a_folder_of_mosaics_names_the_pictures_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(MOSAIC))
    (tmp_path / "b.png").write_bytes(png(patches(np.uint8)))
    found = import_folder(tmp_path, unlabelled="good", bayer="RGGB")
    assert [item.name for item in found.items] == ["a.png"]
    assert [(error.code, error.file) for error in found.problems] == [("bayer_colour", "b.png")]
