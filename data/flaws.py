"""Drawn defects: scratches, pits and stains, each painted into a frame and marked in its mask."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.surface import Plane, SurfaceSpec, smooth_plane

CLASSES = ("scratch", "pit", "stain")

_PLACEMENT_ATTEMPTS = 30


@dataclass(frozen=True)
class _Patch:
    """A defect on its own small canvas.

    Attributes:
        levels: (h, w) float32 grey levels to add.
        marked: (h, w) bool, the defect's labelled pixels.
    """

    levels: Plane
    marked: NDArray[np.bool_]


def add_defects(
    frame: Plane, mask: NDArray[np.uint8], spec: SurfaceSpec, rng: np.random.Generator
) -> None:
    """Paint one to four defects into ``frame`` and mark them in ``mask``, whole and apart.

    Args:
        frame: (H, W) float32 grey levels, changed in place.
        mask: (H, W) uint8 index mask, changed in place.
        spec: The part's finish; a pit's rim is bright on the side that faces the light.
        rng: Source of every choice.
    """
    painters = (_paint_scratch, _paint_pit, _paint_stain)
    shortest_px = min(frame.shape)
    for _ in range(int(rng.integers(1, 5))):
        kind = int(rng.choice(3, p=[0.4, 0.35, 0.25]))
        patch = painters[kind](spec, rng, shortest_px)
        _place(patch, kind + 1, frame, mask, rng)


def _place(
    patch: _Patch,
    value: int,
    frame: Plane,
    mask: NDArray[np.uint8],
    rng: np.random.Generator,
) -> None:
    height, width = patch.levels.shape
    for _ in range(_PLACEMENT_ATTEMPTS):
        top = int(rng.integers(0, frame.shape[0] - height + 1))
        left = int(rng.integers(0, frame.shape[1] - width + 1))
        window = (slice(top, top + height), slice(left, left + width))
        if not mask[window].any():
            frame[window] += patch.levels
            mask[window][patch.marked] = value
            return


def _paint_scratch(spec: SurfaceSpec, rng: np.random.Generator, shortest_px: int) -> _Patch:
    """Return a curved groove of 1 to 3 px across the marks: dark with one bright flank."""
    import cv2

    length_px = min(float(np.exp(rng.uniform(np.log(60), np.log(600)))), 0.6 * shortest_px)
    thickness_px = int(rng.integers(1, 4))
    steps = max(8, int(length_px / 6))
    # A scratch along the marks would be one; it starts at least 25 degrees away from them.
    lay_direction = spec.lay_angle_rad + np.pi / 2
    heading = lay_direction + rng.uniform(np.radians(25), np.radians(155))
    turns = rng.normal(0, 0.03, steps).cumsum() + np.linspace(0, rng.normal(0, 0.5), steps)
    headings = heading + turns
    step = length_px / steps
    track = np.stack([np.cos(headings), np.sin(headings)], axis=1).cumsum(axis=0) * step
    margin = thickness_px + 4
    track += margin - track.min(axis=0)
    width, height = (int(side) + margin + 1 for side in track.max(axis=0))
    fixed = np.rint(track * 16).astype(np.int32)
    groove = np.zeros((height, width), np.float32)
    for start, stop, depth in zip(fixed, fixed[1:], _fading(rng, steps - 1), strict=False):
        cv2.line(groove, start.tolist(), stop.tolist(), float(depth), 1, shift=4)
    # cv2.line draws 5 px where it is asked for 3; widening a line of one pixel keeps the promise.
    groove = cv2.dilate(groove, np.ones((thickness_px, thickness_px), np.uint8))
    marked = groove > 0
    groove = cv2.GaussianBlur(groove, (3, 3), 0.55)
    flank = np.roll(groove, 1 + thickness_px // 2, axis=0)
    contrast = rng.uniform(14, 38) * rng.choice([-1.0, 1.0], p=[0.7, 0.3])
    return _Patch(np.float32(contrast) * (groove - np.float32(0.4) * flank), marked)


def _fading(rng: np.random.Generator, count: int) -> Plane:
    """Return (count,) depths that rise and fall at the ends and never vanish."""
    ends = np.sin(np.linspace(0.25, np.pi - 0.25, count)) ** 0.5
    return (ends * rng.uniform(0.75, 1.0, count)).astype(np.float32)


def _paint_pit(spec: SurfaceSpec, rng: np.random.Generator, shortest_px: int) -> _Patch:
    """Return a small crater: dark, with a bright rim on the side away from the light."""
    radius = min(float(np.exp(rng.uniform(np.log(3), np.log(14)))), shortest_px / 10)
    half = int(np.ceil(radius * 1.7)) + 2
    y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float32)
    angle = np.arctan2(y, x)
    outline = np.full_like(angle, radius)
    for lobe in (2, 3, 5):
        outline *= 1 + np.float32(rng.uniform(0, 0.22 / lobe)) * np.cos(
            lobe * angle + np.float32(rng.uniform(0, 2 * np.pi))
        )
    # Distance from the outline in pixels, negative inside.
    distance = np.hypot(x, y) - outline
    bowl = np.clip(-distance / np.float32(max(1.2, radius * 0.35)), 0, 1)
    facing = np.cos(angle - np.float32(spec.light_angle_rad + np.pi))
    rim = np.exp(-((distance - np.float32(0.6)) ** 2) / np.float32(1.6)) * np.clip(facing, 0, 1)
    depth, shine = rng.uniform(18, 55), rng.uniform(10, 40)
    levels = np.float32(shine) * rim - np.float32(depth) * bowl
    return _Patch(levels.astype(np.float32), distance <= 0.5)


def _paint_stain(spec: SurfaceSpec, rng: np.random.Generator, shortest_px: int) -> _Patch:
    """Return an irregular spot of low contrast, darkest at its edge, as a dried drop is."""
    del spec
    size_px = min(float(rng.uniform(20, 80)), shortest_px / 2.5)
    half = int(size_px * 0.85) + 2
    side = 2 * half + 1
    y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float32)
    ragged = smooth_plane(rng, side, side, size_px / 3.2)
    stretch = np.float32(rng.uniform(0.75, 1.3))
    field = 1 - np.hypot(x * stretch, y / stretch) / np.float32(size_px / 2)
    field += 0.22 * ragged
    # Nothing may touch the canvas, where it would be cut off in a straight line.
    field -= np.float32(4) * np.clip(np.maximum(abs(x), abs(y)) / half - 0.9, 0, 1)
    soft = np.clip(field / 0.16, 0, 1)
    ring = np.exp(-(((field - 0.09) / 0.08) ** 2))
    contrast = rng.uniform(7, 16) * rng.choice([-1.0, 1.0], p=[0.8, 0.2])
    levels = np.float32(contrast) * (0.75 * soft + 0.35 * ring * (field > 0))
    return _Patch(levels.astype(np.float32), _largest_region(field > 0.04))


def _largest_region(marked: NDArray[np.bool_]) -> NDArray[np.bool_]:
    import cv2

    _, regions, stats, _ = cv2.connectedComponentsWithStats(marked.astype(np.uint8))
    largest = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
    chosen: NDArray[np.bool_] = regions == largest
    return chosen
