import io
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from data import ImageError, LabelError, read_mask

CLASSES = ("scratch", "pit")


def png(pixels: Any) -> bytes:
    return bytes(imagecodecs.png_encode(pixels))


def mask_of(*values: int, dtype: Any = np.uint8) -> Any:
    mask = np.zeros((40, 50), dtype)
    for index, value in enumerate(values):
        mask[10 + index, 20] = value
    return mask


def saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_class_indices_are_read_as_they_are(dtype: Any) -> None:
    mask = read_mask(png(mask_of(1, 2, dtype=dtype)), name="m.png", classes=CLASSES)
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, mask_of(1, 2))


def test_with_one_class_255_stands_for_it() -> None:
    mask = read_mask(png(mask_of(255)), name="m.png", classes=["pit"])
    np.testing.assert_array_equal(mask, mask_of(1))


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_grey_of_less_than_a_byte_keeps_its_values(bits: int) -> None:
    value = min(2**bits - 1, 3)
    picture = Image.fromarray(mask_of(value)).convert("P")
    # Pillow writes palettes of few bits; grey of few bits is the same data without a palette.
    raw = _as_grey(saved(picture, "PNG", bits=bits))
    mask = read_mask(raw, name="m.png", classes=["a", "b", "c"])
    np.testing.assert_array_equal(mask, mask_of(value))


def _as_grey(raw: bytes) -> bytes:
    import struct
    import zlib

    chunks, position = [], 8
    while position < len(raw):
        (length,) = struct.unpack_from(">I", raw, position)
        kind, payload = raw[position + 4 : position + 8], raw[position + 8 : position + 8 + length]
        if kind == b"IHDR":
            payload = payload[:9] + b"\0" + payload[10:]
        if kind not in (b"PLTE", b"tRNS"):
            checksum = zlib.crc32(kind + payload)
            chunks.append(struct.pack(">I", len(payload)) + kind + payload)
            chunks.append(struct.pack(">I", checksum))
        position += 12 + length
    return raw[:8] + b"".join(chunks)


def test_a_palette_is_only_colouring() -> None:
    picture = Image.fromarray(mask_of(1, 2)).convert("P")
    picture.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0] + [0] * 759)
    mask = read_mask(saved(picture, "PNG"), name="m.png", classes=CLASSES)
    np.testing.assert_array_equal(mask, mask_of(1, 2))


def test_bmp_and_tiff_masks_are_read() -> None:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, mask_of(1, 2), photometric="minisblack")
    for raw in (buffer.getvalue(), saved(Image.fromarray(mask_of(1, 2)), "BMP")):
        np.testing.assert_array_equal(read_mask(raw, name="m", classes=CLASSES), mask_of(1, 2))


def test_grey_that_was_saved_as_rgb_is_read() -> None:
    raw = png(np.dstack([mask_of(1)] * 3))
    np.testing.assert_array_equal(read_mask(raw, name="m.png", classes=["pit"]), mask_of(1))


@pytest.mark.parametrize(
    ("values", "classes", "first"),
    [
        ((1, 2, 7), CLASSES, "pixel (x=20, y=12)"),
        ((255,), CLASSES, "pixel (x=20, y=10)"),
        ((1, 255), ("pit",), "pixel (x=20, y=11)"),
        ((255, 128), ("pit",), "pixel (x=20, y=10)"),
    ],
)
def test_a_value_that_is_no_class_is_named_with_its_first_pixel(
    values: tuple[int, ...], classes: tuple[str, ...], first: str
) -> None:
    with pytest.raises(LabelError) as caught:
        read_mask(png(mask_of(*values)), name="m.png", classes=classes)
    assert (caught.value.code, caught.value.where) == ("mask_value", first)


def test_a_coloured_mask_is_refused_at_its_first_coloured_pixel() -> None:
    pixels = np.dstack([mask_of(200), mask_of(0), mask_of(0)])
    with pytest.raises(LabelError) as caught:
        read_mask(png(pixels), name="m.png", classes=["pit"])
    assert (caught.value.code, caught.value.where) == ("mask_colour", "pixel (x=20, y=10)")


def test_a_jpeg_mask_is_refused_because_it_is_lossy() -> None:
    raw = saved(Image.fromarray(mask_of(255)), "JPEG")
    with pytest.raises(LabelError) as caught:
        read_mask(raw, name="m.png", classes=["pit"])
    assert caught.value.code == "mask_lossy"


def test_a_cut_off_palette_mask_is_refused() -> None:
    raw = saved(Image.fromarray(mask_of(1)).convert("P"), "PNG")
    with pytest.raises(ImageError):
        read_mask(raw[:-6], name="m.png", classes=["pit"])


@pytest.mark.datasets
def test_every_real_mask_is_read(datasets_dir: Path) -> None:
    paths = sorted((datasets_dir / "weld_seg").rglob("*_mask.png"))
    assert len(paths) == 118
    for path in paths[::4]:
        assert read_mask(path.read_bytes(), name=path.name, classes=["defect"]).any()
