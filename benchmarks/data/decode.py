"""Frames decoded strictly and varied at random, against plain cv2 on the same bytes.

cv2 paints over damage that `data.decode_image` refuses, so a ratio above 1 is the price of that.
"""

import argparse
import io
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import tifffile

from benchmarks.data.page import PAGE
from benchmarks.data.rounds import measure_rounds, median_s, ratio
from benchmarks.results_page import spread
from data import decode_image
from data.augmentation import Augmentation, AugmentationSpec
from data.synthetic import draw_frame

_PLAIN, _STRICT = "cv2", "data"
_PLAIN_VARIED, _VARIED = "cv2 varied", "data varied"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's arguments."""
    PAGE.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure and write the page; return the exit status."""
    return PAGE.record("decode", arguments, measure)


def measure(quick: bool) -> dict[str, Any]:
    """Return the rates of one run."""
    width, height, rounds = (320, 256, 2) if quick else (2500, 2000, 15)
    rows = []
    for name, raw in _files(width, height).items():
        seconds = measure_rounds(_arms(name, raw), rounds=rounds, warm_up=2)
        rows.append(
            [
                name,
                f"{1 / median_s(seconds, _STRICT):.1f}",
                spread(ratio(seconds, _STRICT, _PLAIN)),
                f"{1 / median_s(seconds, _VARIED):.1f}",
                spread(ratio(seconds, _VARIED, _PLAIN_VARIED)),
                spread(ratio(seconds, _VARIED, _PLAIN)),
            ]
        )
    return {
        "notes": [
            (
                f"A drawn frame of {width}x{height} px, colour where the format's name says so; "
                f"{rounds} rounds; cv2 {cv2.__version__} with {cv2.getNumThreads()} threads. "
                "cv2 varies with mirrors, a gamma table and noise of its own, each half the time, "
                "as `data.augmentation` does."
            ),
        ],
        "columns": [
            "",
            "decoded/s",
            "time / cv2.imdecode",
            "decoded and varied/s",
            "time / cv2 decoding and varying",
            "time / cv2.imdecode",
        ],
        "rows": rows,
    }


def _files(width: int, height: int) -> dict[str, bytes]:
    grey = draw_frame(0, width_px=width, height_px=height).pixels
    colour = np.dstack([grey, grey, grey])
    # The lower bits are noise, as a 12-bit camera's are.
    noise = np.random.default_rng(0).integers(0, 16, grey.shape, dtype=np.uint16)
    deep = grey.astype(np.uint16) * 16 + noise
    tiff = io.BytesIO()
    tifffile.imwrite(tiff, grey)
    return {
        "JPEG": _encoded(".jpg", grey, cv2.IMWRITE_JPEG_QUALITY, 95),
        "JPEG colour": _encoded(".jpg", colour, cv2.IMWRITE_JPEG_QUALITY, 95),
        "PNG 8 bit": _encoded(".png", grey),
        "PNG 16 bit": _encoded(".png", deep),
        "BMP": _encoded(".bmp", grey),
        "TIFF": tiff.getvalue(),
    }


def _encoded(suffix: str, pixels: Any, *parameters: int) -> bytes:
    done, buffer = cv2.imencode(suffix, pixels, list(parameters))
    assert done
    return bytes(buffer)


def _arms(name: str, raw: bytes) -> dict[str, Callable[[], object]]:
    augmentation = Augmentation(AugmentationSpec())
    mask = np.zeros((*decode_image(raw, name=name).pixels.shape[:2], 1), np.uint8)
    rng, plain_rng = np.random.default_rng(0), np.random.default_rng(0)

    def plain() -> Any:
        return cv2.imdecode(np.frombuffer(raw, np.uint8), cv2.IMREAD_UNCHANGED)

    def strict() -> Any:
        return decode_image(raw, name=name).pixels

    def varied() -> object:
        pixels = strict()
        return augmentation.apply(pixels.reshape(*pixels.shape[:2], -1), [mask], rng)

    return {
        _PLAIN: plain,
        _STRICT: strict,
        _PLAIN_VARIED: lambda: _vary_plainly(plain(), mask, plain_rng),
        _VARIED: varied,
    }


def _vary_plainly(pixels: Any, mask: Any, rng: np.random.Generator) -> Any:
    """Return frame and mask varied with cv2 alone: mirrors, gamma and noise, each half the time."""
    for direction in (0, 1):
        if rng.random() < 0.5:
            pixels, mask = cv2.flip(pixels, direction), cv2.flip(mask, direction)
    if rng.random() < 0.5:
        levels = 1 << (8 * pixels.dtype.itemsize)
        table = np.linspace(0, 1, levels) ** rng.uniform(0.85, 1.18) * (levels - 1)
        # cv2.LUT takes 8 bits only.
        table = table.astype(pixels.dtype)
        pixels = cv2.LUT(pixels, table) if levels == 256 else table[pixels]
    if rng.random() < 0.5:
        noise = np.empty(pixels.shape, np.int16)
        cv2.randn(noise, 0, 0.01 * np.iinfo(pixels.dtype).max)
        pixels = cv2.add(pixels, noise, dtype=cv2.CV_8U if pixels.dtype == np.uint8 else cv2.CV_16U)
    return pixels, mask
