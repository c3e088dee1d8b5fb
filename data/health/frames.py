"""Frames unlike the others: their size and depth, their light, sharpness and colour."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.health.findings import Example, FileProblem, Finding, finding
from data.health.measurement import FrameMeasurement
from data.items import Item
from data.manifest import Manifest

# Where sizes are this mixed, no frame is an odd one.
_COMMON_SHARE = 0.8
# Of fewer frames nobody can say what is usual.
FEWEST_COMPARED = 10
# A frame is unusual this many standard deviations from the median, which are told by the median
# absolute deviation, so that the odd ones can't hide themselves.  With 6, and 5 for blur, only the
# frames of a second camera are named in 300 photos of ball screws and welds.
_UNUSUAL_DEVIATIONS = 6.0
_UNUSUAL_BLUR_DEVIATIONS = 5.0
# A normal distribution's standard deviation in median absolute deviations.
_MAD_TO_SIGMA = 1.4826
# In grey levels: below this nothing but the sensor's noise is left of a picture.
_BLANK_CONTRAST = 1.0
# Least standard deviations: a very even set does not make a harmless frame unusual.
_BRIGHTNESS_FLOOR = 4.0
_CLIPPED_FLOOR = 0.02
_CONTRAST_FLOOR = 0.2
_BLUR_FLOOR = 0.18
_COLOUR_FLOOR = 4.0

Values = NDArray[np.float64]


def check_files(
    unreadable_frames: Mapping[str, FileProblem], unreadable_labels: Mapping[str, FileProblem]
) -> Iterator[Finding]:
    """Tell which stored files are missing, changed or damaged, by the names of their frames."""
    if unreadable_frames:
        yield finding(
            "unreadable_frames",
            "error",
            "Some frames can't be read as they were frozen; training would stop at them.",
            [Example(f"{name}: {problem.detail}") for name, problem in unreadable_frames.items()],
            "Upload the same files again, which restores them, or restore a backup of the storage; "
            "otherwise delete the frames and freeze a new version.",
        )
    if unreadable_labels:
        yield finding(
            "unreadable_labels",
            "error",
            "The masks of some frames can't be read as they were frozen.",
            [
                Example(f"{name}: {problem.detail}", (name,))
                for name, problem in unreadable_labels.items()
            ],
            "Upload the same label files again, which restores the masks, or restore a backup of "
            "the storage; otherwise delete these labels and freeze a new version.",
        )


def check_formats(manifest: Manifest) -> Iterator[Finding]:
    """Look for single frames of another size or depth."""
    kinds: tuple[tuple[str, Callable[[Item], str]], ...] = (
        ("odd_size", lambda item: f"{item.width}x{item.height} px"),
        ("odd_depth", lambda item: f"{item.bit_depth} bit, {item.channels} channels"),
    )
    for code, describe in kinds:
        counts = Counter(map(describe, manifest.items))
        if len(counts) < 2:
            continue
        common, count = counts.most_common(1)[0]
        if count < _COMMON_SHARE * len(manifest.items):
            continue
        odd = [
            Example(f"{i.name} ({describe(i)})", (i.name,))
            for i in manifest.items
            if describe(i) != common
        ]
        yield finding(
            code,
            "warning",
            f"Some frames are unlike the {count} of {common}.",
            odd,
            "Check whether they come from another camera or were cut or converted on the way.",
        )


@dataclass(frozen=True)
class _Trait:
    """What may make a frame unusual.

    Attributes:
        code: Of the finding.
        detail: Its sentence, with the usual value as ``{usual}``.
        hint: Its remedy.
        distance: Returns by how many standard deviations each frame exceeds what is usual.
        limit: From how many on.
        values: What is shown of each frame.
        unit: Of what is shown.
    """

    code: str
    detail: str
    hint: str
    distance: Values
    limit: float
    values: Values
    unit: str


def check_light(manifest: Manifest, measured: Mapping[str, FrameMeasurement]) -> Iterator[Finding]:
    """Look for blank, over- and underexposed, blurred and otherwise unusual frames.

    A frame is named once, by the first of these that is true of it.

    Args:
        manifest: The version.
        measured: Measurements by the frame's SHA-256; others are passed over.
    """
    items = [item for item in manifest.items if item.sha256 in measured]
    gains = depth_gains(items, measured)
    blank = {
        item.name
        for item, gain in zip(items, gains, strict=True)
        if measured[item.sha256].contrast * gain < _BLANK_CONTRAST
    }
    if blank:
        yield finding(
            "blank_frames",
            "warning",
            "Some frames show nothing: every pixel is as bright as the next.",
            [Example(name, (name,)) for name in blank],
            "Check the camera, its lamp and its cap, and leave the frames out.",
        )
    seen = [(i, g) for i, g in zip(items, gains, strict=True) if i.name not in blank]
    if len(seen) < FEWEST_COMPARED:
        return
    named: set[str] = set()
    frames = [item for item, _ in seen]
    for trait in _traits([measured[item.sha256] for item in frames], [gain for _, gain in seen]):
        odd = [
            Example(f"{item.name} ({value:.3g}{trait.unit})", (item.name,))
            for item, distance, value in zip(frames, trait.distance, trait.values, strict=True)
            if distance > trait.limit and item.name not in named
        ]
        named |= {name for example in odd for name in example.frames}
        if odd:
            usual = f"{np.median(trait.values):.3g}{trait.unit}"
            yield finding(trait.code, "warning", trait.detail.format(usual=usual), odd, trait.hint)


def depth_gains(items: Sequence[Item], measured: Mapping[str, FrameMeasurement]) -> list[float]:
    """Return what each frame's grey levels are multiplied by to fill 0 to 255.

    A camera of 12 bits fills a sixteenth of 16; which it is, the brightest of its frames tells.
    """
    brightest = max((measured[i.sha256].brightest for i in items if i.bit_depth == 16), default=255)
    steps = next(steps for steps in (8, 6, 4, 2, 0) if brightest <= 255.5 / (1 << steps))
    return [float(1 << steps) if item.bit_depth == 16 else 1.0 for item in items]


def _traits(frames: Sequence[FrameMeasurement], gains: Sequence[float]) -> tuple[_Trait, ...]:
    scale = np.asarray(gains)
    brightness = np.array([frame.brightness for frame in frames]) * scale
    contrast = np.array([frame.contrast for frame in frames]) * scale
    colour = np.array([frame.colour for frame in frames]) * scale
    sharpness = np.array([frame.sharpness for frame in frames])
    dark = np.array([frame.dark_share for frame in frames])
    bright = np.array([frame.bright_share for frame in frames])
    light = "Check the lamp and the exposure time, or leave the frames out."
    return (
        _Trait(
            "overexposed_frames",
            "Some frames are burnt out: far more than the usual {usual} of their pixels are white.",
            light,
            _deviations(bright, _CLIPPED_FLOOR),
            _UNUSUAL_DEVIATIONS,
            100 * bright,
            " %",
        ),
        _Trait(
            "underexposed_frames",
            "Some frames are drowned: far more than the usual {usual} of their pixels are black.",
            light,
            _deviations(dark, _CLIPPED_FLOOR),
            _UNUSUAL_DEVIATIONS,
            100 * dark,
            " %",
        ),
        _Trait(
            "unusual_brightness",
            "Some frames are far brighter or darker than the usual grey level of {usual}.",
            light,
            abs(_deviations(brightness, _BRIGHTNESS_FLOOR)),
            _UNUSUAL_DEVIATIONS,
            brightness,
            "",
        ),
        _Trait(
            "unusual_contrast",
            "Some frames' grey levels spread far more or less than the usual {usual}.",
            "Check the lamp, the lens and the gain, or leave the frames out.",
            abs(_deviations(np.log2(contrast), _CONTRAST_FLOOR)),
            _UNUSUAL_DEVIATIONS,
            contrast,
            "",
        ),
        _Trait(
            "blurred_frames",
            "Some frames lack the fine detail of the others (sharpness {usual}).",
            "Check the focus, the exposure time and the lens, or leave the frames out.",
            -_deviations(np.log2(np.maximum(sharpness, 1e-6)), _BLUR_FLOOR),
            _UNUSUAL_BLUR_DEVIATIONS,
            sharpness,
            "",
        ),
        _Trait(
            "unusual_colour",
            "Some frames are far more or less colourful than the usual {usual} grey levels.",
            "Check the white balance, and whether grey frames were mixed with coloured ones.",
            abs(_deviations(colour, _COLOUR_FLOOR)),
            _UNUSUAL_DEVIATIONS,
            colour,
            "",
        ),
    )


def _deviations(values: Values, floor: float) -> Values:
    """Return how many robust standard deviations each value lies above the median."""
    median = np.median(values)
    spread = _MAD_TO_SIGMA * float(np.median(abs(values - median)))
    return np.asarray((values - median) / max(spread, floor), np.float64)
