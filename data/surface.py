"""The drawn surface: machining marks, light and harmless distractors, without any defect."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.float32]

# Samples of the mark profile a pixel: finer than this, interpolating it changes no grey level.
_PROFILE_OVERSAMPLING = 4


@dataclass(frozen=True)
class SurfaceSpec:
    """What one part looks like; frames of one part share it.

    Attributes:
        lay_angle_rad: Direction across the machining marks.
        mark_period_px: Main distance of the marks.
        mark_contrast: Amplitude of the marks in grey levels.
        bow_px: How far a mark bends over the frame, as on a turned face.
        base_level: Mean grey level.
        light_angle_rad: Where the light comes from.
        profile: (N,) float32 heights across the marks, in units of ``mark_contrast``.
    """

    lay_angle_rad: float
    mark_period_px: float
    mark_contrast: float
    bow_px: float
    base_level: float
    light_angle_rad: float
    profile: NDArray[np.float32]


def draw_surface_spec(
    rng: np.random.Generator, *, diagonal_px: float, product: np.random.Generator | None = None
) -> SurfaceSpec:
    """Draw a part's finish.

    Args:
        rng: Source of what is this part's own.
        diagonal_px: Length of the frame's diagonal, which the profile has to cover.
        product: Source of what the parts of one product share: they lie alike under one light and
            come from one machine, and differ by its small deviations.  None makes the part a
            product of its own.
    """
    process = product or rng
    period_px = float(process.uniform(5.0, 22.0))
    lay_angle_rad = float(process.uniform(0, np.pi))
    mark_contrast = float(process.uniform(5.0, 12.0))
    bow_px = float(process.uniform(-0.06, 0.06) * diagonal_px)
    base_level = float(process.uniform(105, 150))
    light_angle_rad = float(process.uniform(0, 2 * np.pi))
    if product is not None:
        period_px *= float(rng.uniform(0.92, 1.08))
        lay_angle_rad += float(np.radians(rng.uniform(-4, 4)))
        mark_contrast *= float(rng.uniform(0.8, 1.25))
        bow_px *= float(rng.uniform(0.8, 1.2))
        base_level += float(rng.uniform(-6, 6))
        light_angle_rad += float(np.radians(rng.uniform(-10, 10)))
    return SurfaceSpec(
        lay_angle_rad=lay_angle_rad,
        mark_period_px=period_px,
        mark_contrast=mark_contrast,
        bow_px=bow_px,
        base_level=base_level,
        light_angle_rad=light_angle_rad,
        profile=_mark_profile(rng, int(diagonal_px * 1.5), period_px),
    )


def _mark_profile(rng: np.random.Generator, length_px: int, period_px: float) -> Plane:
    """Return heights across the marks: a feed period that wanders, and grain of three scales."""
    count = length_px * _PROFILE_OVERSAMPLING
    position = np.arange(count, dtype=np.float32) / _PROFILE_OVERSAMPLING
    wander = smooth_line(rng, count, 12 * period_px * _PROFILE_OVERSAMPLING)
    phase = 2 * np.pi * position / period_px + 2.5 * wander
    strength = 0.5 + 0.25 * smooth_line(rng, count, 6 * period_px * _PROFILE_OVERSAMPLING)
    profile = strength * np.sin(phase)
    for scale_px, weight in ((0.8, 0.55), (2.5, 0.6), (40.0, 0.5)):
        profile += weight * smooth_line(rng, count, scale_px * _PROFILE_OVERSAMPLING)
    return profile.astype(np.float32)


def smooth_line(rng: np.random.Generator, count: int, scale: float) -> Plane:
    """Return (count,) float32 noise around 0 that changes over about ``scale`` samples."""
    knots = rng.standard_normal(max(4, int(count / scale) + 3))
    line = np.interp(np.arange(count) / scale, np.arange(knots.size), knots)
    return line.astype(np.float32)


def smooth_plane(rng: np.random.Generator, height_px: int, width_px: int, scale_px: float) -> Plane:
    """Return (H, W) float32 noise around 0 that changes over ``scale_px``."""
    import cv2

    rows, columns = (max(2, int(side / scale_px) + 2) for side in (height_px, width_px))
    knots = rng.standard_normal((rows, columns)).astype(np.float32)
    plane: Plane = cv2.resize(knots, (width_px, height_px), interpolation=cv2.INTER_CUBIC)
    return plane


def draw_surface(
    spec: SurfaceSpec, rng: np.random.Generator, *, height_px: int, width_px: int
) -> Plane:
    """Draw one frame of a part's surface.

    Args:
        spec: The part's finish.
        rng: What differs between frames of the part: position, soiling, sensor.
        height_px: Frame height.
        width_px: Frame width.

    Returns:
        (H, W) float32 grey levels before sensor noise, not yet clipped.
    """
    marks = _draw_marks(spec, rng, height_px, width_px)
    marks *= spec.mark_contrast * (
        1 + 0.3 * smooth_plane(rng, height_px, width_px, max(height_px, width_px) / 4)
    )
    frame = marks + spec.base_level
    frame *= _draw_light(spec, rng, height_px, width_px)
    _add_tool_bands(frame, spec, rng)
    _add_oil_sheen(frame, rng)
    _add_glints(frame, spec, rng)
    _add_dust(frame, rng)
    return frame


def coordinates(angle_rad: float, height_px: int, width_px: int) -> tuple[Plane, Plane]:
    """Return (H, W) float32 pixels along ``angle_rad`` and across it, from the frame's centre."""
    x = np.arange(width_px, dtype=np.float32) - width_px / 2
    y = (np.arange(height_px, dtype=np.float32) - height_px / 2)[:, None]
    cosine, sine = np.float32(np.cos(angle_rad)), np.float32(np.sin(angle_rad))
    return x * cosine + y * sine, y * cosine - x * sine


def _draw_marks(
    spec: SurfaceSpec, rng: np.random.Generator, height_px: int, width_px: int
) -> Plane:
    across, along = coordinates(spec.lay_angle_rad, height_px, width_px)
    half_diagonal = np.float32(np.hypot(height_px, width_px) / 2)
    across += np.float32(spec.bow_px) * (along / half_diagonal) ** 2
    shift_px = float(rng.uniform(0, spec.mark_period_px * 20))
    centre = spec.profile.size / (2 * _PROFILE_OVERSAMPLING)
    index = ((across + np.float32(centre + shift_px)) * _PROFILE_OVERSAMPLING).astype(np.int32)
    marks = np.take(spec.profile, index, mode="wrap")
    # A second reading of the profile, faded in and out along the marks, lets single marks end.
    other = np.take(spec.profile, index + spec.profile.size // 3, mode="wrap")
    fade = 0.5 + 0.35 * smooth_plane(rng, height_px, width_px, max(height_px, width_px) / 9)
    marks += (other - marks) * np.clip(fade, 0, 1)
    return marks


def _draw_light(
    spec: SurfaceSpec, rng: np.random.Generator, height_px: int, width_px: int
) -> Plane:
    towards, sideways = coordinates(spec.light_angle_rad, height_px, width_px)
    half_diagonal = np.float32(np.hypot(height_px, width_px) / 2)
    towards /= half_diagonal
    sideways /= half_diagonal
    gradient, vignette = rng.uniform(0.05, 0.22), rng.uniform(0.12, 0.35)
    light = 1 + np.float32(gradient) * towards
    light -= np.float32(vignette) * (towards * towards + sideways * sideways)
    light += 0.025 * smooth_plane(rng, height_px, width_px, max(height_px, width_px) / 3)
    # A lamp's reflection is a soft band along the marks' direction of curvature.
    centre, width = rng.uniform(-0.4, 0.4), rng.uniform(0.12, 0.3)
    light += np.float32(rng.uniform(0.03, 0.16)) * np.exp(
        -(((sideways - np.float32(centre)) / np.float32(width)) ** 2)
    )
    return light


def _add_tool_bands(frame: Plane, spec: SurfaceSpec, rng: np.random.Generator) -> None:
    """Darken or brighten stripes along the lay, as a worn insert or a chip leaves them."""
    height_px, width_px = frame.shape
    across, _ = coordinates(spec.lay_angle_rad, height_px, width_px)
    span = 0.45 * float(np.hypot(height_px, width_px))
    for _ in range(int(rng.integers(2, 6))):
        centre, half_width = rng.uniform(-span, span), rng.uniform(0.7, 14.0)
        level = rng.normal(0, 7.0)
        band = np.abs(across - np.float32(centre)) < np.float32(half_width)
        frame[band] += np.float32(level)


def _add_oil_sheen(frame: Plane, rng: np.random.Generator) -> None:
    """Add wide soft clouds; a stain is smaller and has an edge."""
    height_px, width_px = frame.shape
    cloud = smooth_plane(rng, height_px, width_px, max(height_px, width_px) / 6)
    frame += np.float32(rng.uniform(2.0, 5.0)) * np.maximum(cloud - 0.6, 0)


def _add_glints(frame: Plane, spec: SurfaceSpec, rng: np.random.Generator) -> None:
    """Add short bright reflections that lie along the marks."""
    import cv2

    height_px, width_px = frame.shape
    glints = np.zeros_like(frame)
    direction = np.array([-np.sin(spec.lay_angle_rad), np.cos(spec.lay_angle_rad)])
    for _ in range(rng.poisson(height_px * width_px / 60_000)):
        start = rng.uniform(0, (width_px, height_px))
        stop = start + direction * rng.uniform(4, 28)
        _line(glints, start, stop, float(rng.uniform(10, 55)))
    frame += cv2.GaussianBlur(glints, (3, 3), 0.7)


def _add_dust(frame: Plane, rng: np.random.Generator) -> None:
    """Add specks and short fibres, softer and smaller than a pit and without its bright rim."""
    import cv2

    height_px, width_px = frame.shape
    dust = np.zeros_like(frame)
    for _ in range(rng.poisson(height_px * width_px / 90_000)):
        start = rng.uniform(0, (width_px, height_px))
        length = rng.uniform(0, 2.5) if rng.random() < 0.85 else rng.uniform(5, 14)
        angle = rng.uniform(0, 2 * np.pi)
        stop = start + length * np.array([np.cos(angle), np.sin(angle)])
        _line(dust, start, stop, float(rng.choice([-1, 1], p=[0.7, 0.3]) * rng.uniform(12, 45)))
    frame += cv2.GaussianBlur(dust, (5, 5), 1.0)


def _line(
    plane: Plane, start: NDArray[np.float64], stop: NDArray[np.float64], level: float
) -> None:
    import cv2

    ends = [tuple(round(float(value) * 16) for value in point) for point in (start, stop)]
    cv2.line(plane, ends[0], ends[1], level, thickness=1, lineType=cv2.LINE_8, shift=4)
