"""Frames that show the same picture: what is learned from one must not be judged by the other.

Two frames are near-duplicates if both signatures of `data.health.measurement` agree.  The layouts
differ by what is left after the best gain and offset, in grey levels: encoding a frame again,
scaling it or grabbing it twice leaves half a level at most, another frame of the same product
nearly one or far more.  A featureless surface under one lamp always has the same layout; there the
details, which are another frame's own, tell.  `python -m benchmarks.near_duplicates` prints the
numbers behind both limits.  Moved, turned or mirrored copies are not found.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from data.health.findings import Example, Finding, finding
from data.health.frames import depth_gains
from data.health.measurement import LAYOUT_STEPS, FrameMeasurement
from data.items import Item
from data.manifest import Manifest

MOST_LAYOUT_RESIDUAL_LEVELS = 0.65
LEAST_DETAIL_CORRELATION = 0.4

# Rows of the correlation matrix in memory at a time: 100,000 columns of them take 50 MB.
_BLOCK_ROWS = 128
# A frame that resembles many others is compared with its nearest ones.
_MOST_CANDIDATES = 8

Pair = tuple[int, int]


def check_twins(manifest: Manifest, measured: Mapping[str, FrameMeasurement]) -> Iterator[Finding]:
    """Look for pictures that the version holds twice.

    Args:
        manifest: The version.
        measured: Measurements by the frame's SHA-256; without one only the files are compared.
    """
    same: defaultdict[str, list[Item]] = defaultdict(list)
    for item in manifest.items:
        known = measured.get(item.sha256)
        same[known.pixels_sha256 if known else item.sha256].append(item)
    twins = [items for items in same.values() if len(items) > 1]
    torn = [items for items in twins if len({item.split for item in items}) > 1]
    within = [items for items in twins if len({item.split for item in items}) == 1]
    yield from _identical(torn, within)
    yield from _contradictory(twins)
    yield from _near(manifest, measured)


def _identical(torn: Sequence[list[Item]], within: Sequence[list[Item]]) -> Iterator[Finding]:
    if torn:
        yield finding(
            "identical_frames_across_splits",
            "error",
            "Some frames are pixel by pixel the same and lie in several splits: what is judged "
            "was learned.",
            [_example(items) for items in torn],
            "Keep one of each, or freeze again with a group_pattern that keeps them together.",
            count=sum(map(len, torn)),
        )
    if within:
        yield finding(
            "identical_frames",
            "warning",
            "Some frames are pixel by pixel the same, so they count twice.",
            [_example(items) for items in within],
            "Keep one of each.",
            count=sum(map(len, within)),
        )


def _contradictory(twins: Sequence[list[Item]]) -> Iterator[Finding]:
    differing = [items for items in twins if len({item.is_defective for item in items}) > 1]
    if differing:
        yield finding(
            "identical_frames_labelled_differently",
            "error",
            "Some frames are pixel by pixel the same, and one is labelled good, another defective.",
            [_example(items) for items in differing],
            "Keep the right one.",
            count=sum(map(len, differing)),
        )


def _near(manifest: Manifest, measured: Mapping[str, FrameMeasurement]) -> Iterator[Finding]:
    items = [item for item in manifest.items if item.sha256 in measured]
    pairs = [
        (items[one], items[other])
        for one, other in near_duplicates(items, measured)
        if _may_leak(items[one], items[other], measured)
    ]
    if pairs:
        yield finding(
            "near_duplicates_across_splits",
            "warning",
            "Some frames show the same picture, saved or taken twice, and lie in several splits: "
            "what is judged was learned.",
            [_example(pair) for pair in pairs],
            "Keep one of each, or freeze again with a group_pattern that keeps them together.",
            count=len({item.name for pair in pairs for item in pair}),
        )


def _may_leak(one: Item, other: Item, measured: Mapping[str, FrameMeasurement]) -> bool:
    is_same = measured[one.sha256].pixels_sha256 == measured[other.sha256].pixels_sha256
    return one.split != other.split and not is_same


def _example(items: Sequence[Item]) -> Example:
    text = " = ".join(f"{item.name} ({item.split or 'unassigned'})" for item in items[:4])
    return Example(text, tuple(item.name for item in items[:2]))


def near_duplicates(items: Sequence[Item], measured: Mapping[str, FrameMeasurement]) -> list[Pair]:
    """Return the pairs of frames in different splits that show the same picture.

    Each frame is compared with every one of another split; 3,000 frames take about a second.

    Args:
        items: Frames, each with its measurement.
        measured: By SHA-256.

    Returns:
        Pairs of indices into ``items``, the smaller first.
    """
    if len(items) < 2:
        return []
    frames = [measured[item.sha256] for item in items]
    details = np.stack([np.frombuffer(frame.detail, "<f2") for frame in frames]).astype(np.float32)
    gains = np.asarray(depth_gains(items, measured), np.float32)
    splits = np.unique([item.split or "" for item in items], return_inverse=True)[1]
    pairs: list[Pair] = []
    for start in range(0, len(items), _BLOCK_ROWS):
        rows = slice(start, start + _BLOCK_ROWS)
        correlation = details[rows] @ details.T
        correlation[splits[rows, None] == splits[None, :]] = 0
        for row, column in _candidates(correlation):
            pair = (start + row, column)
            residual = layout_residual(*(_layout(frames[i], gains[i]) for i in pair))
            if residual <= MOST_LAYOUT_RESIDUAL_LEVELS:
                pairs.append((min(pair), max(pair)))
    return sorted(set(pairs))


def _candidates(correlation: NDArray[np.float32]) -> Iterator[Pair]:
    for row, values in enumerate(correlation):
        columns = np.flatnonzero(values >= LEAST_DETAIL_CORRELATION)
        nearest = columns[np.argsort(-values[columns], kind="stable")][:_MOST_CANDIDATES]
        yield from ((row, int(column)) for column in nearest)


def _layout(frame: FrameMeasurement, gain: float) -> NDArray[np.float32]:
    layout: NDArray[np.float32] = np.frombuffer(frame.layout, "<u2").astype(np.float32)
    return layout * np.float32(gain / LAYOUT_STEPS)


def layout_residual(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Return what the best gain and offset leave of two layouts' difference, in grey levels.

    Of the two directions in which one can be fitted to the other the better one counts, as root
    mean square.
    """
    one, other = one - one.mean(), other - other.mean()
    spreads = float(one.std()), float(other.std())
    if min(spreads) == 0:
        return 0.0
    correlation = float((one * other).mean()) / (spreads[0] * spreads[1])
    return min(spreads) * float(np.sqrt(max(0.0, 1 - correlation**2)))
