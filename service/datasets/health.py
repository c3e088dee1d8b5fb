"""The health report of a version: what its manifest, its pictures and its data set tell."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Engine, select

from data import GoodFrame, Manifest
from data.health import Example, Finding, check_health, finding
from service.database.engine import session_factory
from service.database.tables import Item, Label
from service.datasets.measurements import FrameMeasurer, MeasuredVersion, look_up, stored_files
from service.datasets.repository import select_items, select_waiting_labels
from service.datasets.versions import get_version
from service.storage import Storage


@dataclass(frozen=True)
class VersionHealth:
    """A report.

    Attributes:
        version_id: Of what.
        dataset_id: The data set it was frozen from.
        created_at: When it was frozen.
        manifest: The version.
        findings: What is wrong, errors first.
        unchecked: What was not looked at, and why, as sentences.
        measured: Frames whose pixels were looked at, or that could not be read.
        oldest: When the file that was read longest ago was read.
    """

    version_id: str
    dataset_id: str
    created_at: datetime
    manifest: Manifest
    findings: tuple[Finding, ...]
    unchecked: tuple[str, ...]
    measured: int
    oldest: datetime | None


def examine(
    engine: Engine,
    storage: Storage,
    measurer: FrameMeasurer,
    version_id: str,
    *,
    stride_px: int,
    wait_s: float,
) -> VersionHealth:
    """Return the report of a version; frames not measured within ``wait_s`` are named as such.

    Side effects: starts to measure what was not measured yet.

    Raises:
        NotFound: There is no such version.
        ManifestError: Its manifest is damaged.
    """
    reads = session_factory(engine, writes=False)
    with reads() as session:
        version = get_version(session, version_id)
        manifest = Manifest.read(storage.manifest_path(version.digest))
        files = stored_files(manifest)
        known = look_up(session, storage, files)
    if known.pending or known.retried:
        measurer.measure((*known.pending, *known.retried), wait_s=wait_s)
        with reads() as session:
            known = look_up(session, storage, files)
    findings = check_health(
        manifest,
        measured=known.frames,
        unreadable_frames=known.unreadable_frames,
        unreadable_labels=known.unreadable_labels,
        stride_px=stride_px,
    )
    of_dataset = tuple(_dataset_findings(engine, version.dataset_id, manifest))
    waiting = sum(file.frame is not None for file in known.pending)
    return VersionHealth(
        version_id=version.id,
        dataset_id=version.dataset_id,
        created_at=version.created_at,
        manifest=manifest,
        findings=tuple(sorted((*findings, *of_dataset), key=lambda each: each.severity)),
        unchecked=tuple(_unchecked(manifest, known, waiting)),
        measured=len(manifest.items) - waiting,
        oldest=known.oldest,
    )


def _unchecked(manifest: Manifest, known: MeasuredVersion, waiting: int) -> Iterator[str]:
    total = len(manifest.items)
    masks = len(known.pending) - waiting
    if waiting:
        yield (
            f"{waiting} of {total} frames are not measured yet, so their light, their sharpness "
            "and their duplicates are unknown. It goes on; ask again."
        )
    if masks:
        yield f"{masks} masks are not verified yet. It goes on; ask again."
    if known.oldest is not None:
        yield (
            "Files that were not touched since they were last read whole "
            f"({known.oldest:%Y-%m-%d %H:%M} UTC at the earliest) are not read again; what a disk "
            "changes by itself afterwards is not seen."
        )
    yield "Copies that were moved, turned or mirrored are not recognised as duplicates."
    yield "Whether the labels are right: nothing can tell that but a person."


def _dataset_findings(engine: Engine, dataset_id: str, manifest: Manifest) -> Iterator[Finding]:
    """Compare the version with its data set as it is now."""
    frozen = {item.sha256: item for item in manifest.items}
    with session_factory(engine, writes=False)() as session:
        unlabelled = list(session.scalars(select_items(dataset_id, labelled=False)))
        waiting = list(session.scalars(select_waiting_labels(dataset_id).order_by(Label.name)))
        names = session.execute(
            select(Item.name, Item.sha256).where(Item.dataset_id == dataset_id)
        ).all()
    left_out = [item.name for item in unlabelled if item.sha256 not in frozen]
    assumed = [
        Example(frozen[item.sha256].name, (frozen[item.sha256].name,))
        for item in unlabelled
        if item.sha256 in frozen and isinstance(frozen[item.sha256].labels, GoodFrame)
    ]
    missing = {item.name for item in unlabelled}
    newer = [name for name, sha256 in names if sha256 not in frozen and name not in missing]
    if left_out:
        yield finding(
            "unlabelled_frames",
            "warning",
            "Some frames of the data set have no label and are not in this version.",
            left_out,
            "Label them, or delete them from the data set.",
        )
    if assumed:
        yield finding(
            "assumed_good",
            "warning",
            "Some frames count as good, and the data set has no label that says so.",
            assumed,
            "Look through them: a defect that nobody labelled is learned as good.",
        )
    if waiting:
        yield finding(
            "labels_without_frame",
            "warning",
            "Some labels of the data set wait for a frame.",
            [label.name for label in waiting],
            "Upload the frames they belong to, or delete the labels; names pair them.",
        )
    if newer:
        yield finding(
            "frames_since_frozen",
            "warning",
            "Some labelled frames of the data set are not in this version.",
            newer,
            "Freeze a new version to use them.",
        )
