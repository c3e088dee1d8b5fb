"""What an entry of the corpus of broken inputs is, and the valid files that are broken in it."""

import io
import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from PIL import Image

WIDTH, HEIGHT = 96, 64
CLASSES = ("scratch", "pit")

_RNG = np.random.default_rng(7)
COLOUR = _RNG.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
MONO = np.ascontiguousarray(COLOUR[:, :, 0])


@dataclass(frozen=True)
class BrokenFile:
    """One file that must be refused, with all that its error has to say.

    Attributes:
        name: Under which it is uploaded.
        content: Its bytes.
        code: Of the error.
        where: The place in the file that the error names.
        hint: A part of the remedy.
        classes: What the data set declares.
        frame: Name of the valid frame that is uploaded before it, if any.
        bayer: What the data set declares.
    """

    name: str
    content: bytes
    code: str
    where: str
    hint: str
    classes: tuple[str, ...] | None = CLASSES
    frame: str | None = None
    bayer: str | None = None


@dataclass(frozen=True)
class BrokenArchive:
    """One archive that must be refused, or of which a member must be.

    Attributes:
        build: Returns its bytes; bombs are packed only when they are needed.
        code: Of the error.
        hint: A part of the remedy.
        member: The member that is at fault; None refuses the archive as a whole.
        where: The place that the error names.
        kept: How many frames the data set has afterwards.
        classes: What the data set declares.
    """

    build: Callable[[], bytes]
    code: str
    hint: str
    member: str | None = None
    where: str = "whole file"
    kept: int = 0
    classes: tuple[str, ...] | None = None


def pillow(pixels: Any, kind: str, mode: str | None = None, **options: Any) -> bytes:
    """Encode pixels with Pillow."""
    picture = Image.fromarray(pixels)
    buffer = io.BytesIO()
    (picture if mode is None else picture.convert(mode)).save(buffer, kind, **options)
    return buffer.getvalue()


def tiff(pixels: Any, **options: Any) -> bytes:
    """Encode pixels with tifffile."""
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, **options)
    return buffer.getvalue()


def png(pixels: Any) -> bytes:
    """Encode pixels as PNG."""
    return bytes(imagecodecs.png_encode(pixels))


def patched(raw: bytes, position: int, form: str, *values: int) -> bytes:
    """Return a copy with packed values written over a position."""
    copy = bytearray(raw)
    struct.pack_into(form, copy, position, *values)
    return bytes(copy)


def flipped(raw: bytes, position: int) -> bytes:
    """Return a copy with the lowest bit of a byte flipped."""
    return patched(raw, position, "B", raw[position] ^ 1)


def png_of(width: int, height: int, rows: bytes = b"", *, bits: int = 8) -> bytes:
    """Return a PNG with any header over any rows, its checksums right."""

    def chunk(kind: bytes, payload: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + payload))
        return struct.pack(">I", len(payload)) + kind + payload + crc

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + body


def bmp_of(width: int, height: int, *, bits: int = 24, method: int = 0, info: int = 40) -> bytes:
    """Return a BMP's header and nothing behind it."""
    head = b"BM" + struct.pack("<IIIIiiHHII", 0, 0, 54, info, width, height, 1, bits, method, 0)
    return head.ljust(64, b"\0")


def webp_of(kind: bytes, payload: bytes) -> bytes:
    """Return a WebP of one chunk."""
    chunk = kind + struct.pack("<I", len(payload)) + payload + b"\0" * (len(payload) % 2)
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


def labelme(**changes: Any) -> bytes:
    """Return a valid LabelMe file with fields changed."""
    document = {"version": "5.4.1", "imagePath": "a.png", "imageWidth": WIDTH}
    document |= {"imageHeight": HEIGHT, "shapes": [labelme_shape()]} | changes
    return json.dumps({key: value for key, value in document.items() if value != "drop"}).encode()


def labelme_shape(**changes: Any) -> dict[str, Any]:
    """Return a valid LabelMe shape with fields changed."""
    points = [[10, 10], [30, 10], [30, 20]]
    return {"label": "scratch", "shape_type": "polygon", "points": points} | changes


def voc(size: str = "", found: str = "") -> bytes:
    """Return a valid Pascal VOC file with its size or its object replaced."""
    size = size or f"<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"
    return f"<annotation>\n{size}\n{found or voc_object()}\n</annotation>".encode()


def voc_object(name: str = "scratch", box: tuple[object, ...] = (11, 11, 30, 20)) -> str:
    """Return a Pascal VOC object."""
    sides = ("xmin", "ymin", "xmax", "ymax")
    inner = "".join(f"<{side}>{value}</{side}>" for side, value in zip(sides, box, strict=True))
    return f"<object><name>{name}</name><bndbox>{inner}</bndbox></object>"


def coco(**changes: Any) -> bytes:
    """Return a valid COCO file with lists changed."""
    document: dict[str, Any] = {
        "images": [{"id": 1, "file_name": "a.png", "width": WIDTH, "height": HEIGHT}],
        "categories": [{"id": 1, "name": "scratch"}],
        "annotations": [coco_annotation()],
    }
    return json.dumps(document | changes).encode()


def coco_annotation(**changes: Any) -> dict[str, Any]:
    """Return a valid COCO annotation with fields changed."""
    return {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 10]} | changes


def index_mask(value: int, *, x: int = 40, y: int = 20) -> Any:
    """Return an index mask with one marked pixel."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[y, x] = value
    return mask
