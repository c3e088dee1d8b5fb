"""All checks of a version, in one list."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType

from data.health import frames, labels, splits, twins
from data.health.findings import FileProblem, Finding
from data.health.measurement import FrameMeasurement
from data.manifest import Manifest

# Features of a network's first stage stand for this many pixels.
DEFAULT_STRIDE_PX = 4
_NOTHING: Mapping[str, FileProblem] = MappingProxyType({})
_UNMEASURED: Mapping[str, FrameMeasurement] = MappingProxyType({})


def check_health(
    manifest: Manifest,
    *,
    measured: Mapping[str, FrameMeasurement] = _UNMEASURED,
    unreadable_frames: Mapping[str, FileProblem] = _NOTHING,
    unreadable_labels: Mapping[str, FileProblem] = _NOTHING,
    stride_px: int = DEFAULT_STRIDE_PX,
) -> tuple[Finding, ...]:
    """Return what is wrong, errors first; nothing if nothing is.

    Args:
        manifest: The version, split.
        measured: What is known of frames' pixels, by SHA-256; frames without are judged by the
            manifest alone.
        unreadable_frames: Frames that could not be read, by name.
        unreadable_labels: Frames whose masks could not be read, by name.
        stride_px: Of the network's finest features; smaller defects may vanish between them.
    """
    found: tuple[Iterator[Finding], ...] = (
        frames.check_files(unreadable_frames, unreadable_labels),
        splits.check_groups(manifest),
        twins.check_twins(manifest, measured),
        splits.check_kinds(manifest),
        splits.check_judged_classes(manifest),
        splits.check_learned_classes(manifest),
        splits.check_imbalance(manifest),
        labels.check_outside(manifest),
        labels.check_sizes(manifest, stride_px),
        labels.check_overlaps(manifest),
        labels.check_boxes(manifest),
        frames.check_formats(manifest),
        frames.check_light(manifest, measured),
        splits.check_part_names(manifest),
    )
    findings = [each for check in found for each in check]
    return tuple(sorted(findings, key=lambda each: each.severity))
