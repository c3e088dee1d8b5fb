"""How far apart copies and different frames lie: `python -m benchmarks.near_duplicates [DATASETS]`.

For each set of frames it prints, beside the distance of a common perceptual hash, the two measures
that `data.health.twins` decides by: of each frame and its copies (the worst case), and of the most
alike pairs of different frames.
"""

import itertools
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from data.health import FrameMeasurement, measure_pixels
from data.health.measurement import LAYOUT_STEPS
from data.health.twins import (
    LEAST_DETAIL_CORRELATION,
    MOST_LAYOUT_RESIDUAL_LEVELS,
    layout_residual,
)
from data.images import decode_image
from data.synthetic import draw_frame

_SETS = {
    "ball screws": "bsdata/data/*.jpg",
    "welds": "weld_seg/data/*/images/*.jpg",
    "boards, binarised": "deeppcb/PCBData/**/*.jpg",
    "boards, defects drawn into a photo": "hripcb/PCB_DATASET/images/*/*.jpg",
}
_DRAWN = {"drawn, 1250x1000": (1250, 1000), "drawn, 320x256": (320, 256)}
_COPIED_EVERY = 5
# PCG64's stream for the noise of a second exposure.
_NOISE_SEED = 0
_NOISE_LEVELS = 4.0

Measures = tuple[float, float, float]


def grey_frames(datasets: Path, pattern: str) -> Iterator[Any]:
    """Yield (H, W) uint8 frames of a set."""
    for path in sorted(datasets.glob(pattern)):
        pixels = decode_image(path.read_bytes(), name=path.name).pixels
        yield cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY) if pixels.ndim == 3 else pixels


def bare_surfaces(count: int) -> Iterator[Any]:
    """Yield frames of nothing but one lamp's light and the sensor's noise."""
    rng = np.random.default_rng(_NOISE_SEED)
    y, x = np.mgrid[-1:1:800j, -1:1:1000j]
    light = 150 * (1 - 0.25 * (x * x + y * y))
    for _ in range(count):
        yield np.clip(light + rng.normal(0, 1.5, light.shape), 0, 255).astype(np.uint8)


def copies() -> dict[str, Callable[[Any], Any]]:
    """Return what makes a copy of a frame that should be known again."""
    rng = np.random.default_rng(_NOISE_SEED)
    return {
        "JPEG 75": lambda frame: _jpeg(frame, 75),
        "JPEG 30": lambda frame: _jpeg(frame, 30),
        "half size": lambda frame: cv2.resize(
            frame, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA
        ),
        "second exposure": lambda frame: np.clip(
            frame + rng.normal(0, _NOISE_LEVELS, frame.shape), 0, 255
        ).astype(np.uint8),
        "gain 0.8": lambda frame: (frame * 0.8).astype(np.uint8),
    }


def compare(one: tuple[Any, FrameMeasurement], other: tuple[Any, FrameMeasurement]) -> Measures:
    """Return the hash's differing bits of 64, the layouts' residual, the details' correlation."""
    first, second = (_signatures(measured) for _, measured in (one, other))
    bits = float((one[0] != other[0]).sum())
    return bits, layout_residual(first[0], second[0]), float(first[1] @ second[1])


def _signatures(measured: FrameMeasurement) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return layout, in grey levels, and detail."""
    layout = np.frombuffer(measured.layout, "<u2").astype(np.float32) / np.float32(LAYOUT_STEPS)
    return layout, np.frombuffer(measured.detail, "<f2").astype(np.float32)


def perceptual_hash(frame: Any) -> Any:
    """Return the 64 bits of the usual DCT hash (as ImageHash's ``phash`` computes them)."""
    small = cv2.resize(frame, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32)
    low = cv2.dct(small)[:8, :8]
    return (low > np.median(low)).ravel()


def report(name: str, frames: Iterator[Any]) -> None:
    """Print one set's table."""
    known = []
    distances: defaultdict[str, list[Measures]] = defaultdict(list)
    makers = copies()
    for index, frame in enumerate(frames):
        known.append((perceptual_hash(frame), measure_pixels(frame)))
        for kind, make in makers.items() if index % _COPIED_EVERY == 0 else ():
            copy = make(frame)
            distances[kind].append(
                compare(known[-1], (perceptual_hash(copy), measure_pixels(copy)))
            )
    print(f"\n{name}: {len(known)} frames")
    print(f"{'':28}{'hash bits':>10}{'residual':>10}{'detail':>10}{'named':>16}")
    for kind, measures in distances.items():
        bits, residuals, details = zip(*measures, strict=True)
        _line(f"copy: {kind}, worst", (max(bits), max(residuals), min(details)), measures)
    different = [compare(*pair) for pair in itertools.combinations(known, 2)]
    for pair in sorted(different, key=lambda each: each[1])[:3]:
        _line("different, most alike", pair, [pair])
    bits, residuals, details = zip(*different, strict=True)
    _line("all pairs, nearest", (min(bits), min(residuals), max(details)), different)


def _line(name: str, measures: Measures, counted: list[Measures]) -> None:
    bits, residual, correlation = measures
    named = sum(
        each[1] <= MOST_LAYOUT_RESIDUAL_LEVELS and each[2] >= LEAST_DETAIL_CORRELATION
        for each in counted
    )
    shown = f"{named} of {len(counted)}"
    print(f"{name:28}{bits:10.0f}{residual:10.2f}{correlation:10.2f}{shown:>16}")


def _jpeg(frame: Any, quality: int) -> Any:
    done, raw = cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done
    return cv2.imdecode(raw, cv2.IMREAD_UNCHANGED)


def main() -> None:
    """Print the tables of all sets that are there."""
    print(f"named if residual <= {MOST_LAYOUT_RESIDUAL_LEVELS} grey levels", end=" ")
    print(f"and detail >= {LEAST_DETAIL_CORRELATION}")
    for name, (width, height) in _DRAWN.items():
        drawn = (
            draw_frame(
                seed, width_px=width, height_px=height, part_seed=seed // 2, product_seed=7
            ).pixels
            for seed in range(80)
        )
        report(f"{name}, one product", drawn)
    report("bare surface, one lamp", bare_surfaces(40))
    for name, pattern in _SETS.items() if len(sys.argv) > 1 else ():
        report(name, grey_frames(Path(sys.argv[1]), pattern))


if __name__ == "__main__":
    main()
