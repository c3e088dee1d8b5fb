"""Freezing a data set into an immutable version: a manifest named by its digest, and a row."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from sqlalchemy import Engine, Row, Select, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from data import BoxLabels, Manifest, MaskLabels, SplitSpec, assign_splits
from data import Item as ManifestItem
from data.items import SPLIT_NAMES
from data.label_files import UNDECLARED_MASK_CLASS
from data.labels import GoodFrame, Labels, named_classes
from service.database.engine import session_factory
from service.database.tables import Dataset, Item, Label, Version
from service.datasets.labels import load_labels
from service.datasets.repository import (
    MAX_NAMES_LISTED,
    get_dataset,
    select_waiting_labels,
)
from service.errors import InvalidRequest, NotFound
from service.ids import new_id
from service.storage import Storage

Unlabelled = Literal["reject", "good", "exclude"]

# Plain rows: as mapped objects, 100,000 frames and labels took three times the memory.
_FRAME = (
    Item.id,
    Item.name,
    Item.key,
    Item.sha256,
    Item.width,
    Item.height,
    Item.channels,
    Item.bit_depth,
)


@dataclass(frozen=True, slots=True)
class LabelFile:
    """What a version needs of a label's row: its text, which may be long, is not kept."""

    name: str
    width: int
    height: int


@dataclass(frozen=True)
class DatasetState:
    """Everything a version is made of, as one transaction saw it.

    Attributes:
        dataset: The data set's row.
        items: Its frames: of `Item` the columns in `_FRAME`, ordered by name.
        labels: Its labels by key: the file, and what it says.
        waiting: Names of labels whose frame has not arrived.
    """

    dataset: Dataset
    items: tuple[Row[Any], ...]
    labels: dict[str, tuple[LabelFile, Labels]]
    waiting: tuple[str, ...]


def freeze(
    engine: Engine,
    storage: Storage,
    dataset_id: str,
    *,
    split: SplitSpec,
    unlabelled: Unlabelled,
) -> tuple[Version, bool]:
    """Return the version of the data set as it is now, and whether it is new.

    Side effects: the manifest is on disk before the row that names it.

    Raises:
        NotFound: There is no such data set.
        InvalidRequest: Frames lack labels, labels lack frames, or the classes can't be told.
        DataError: The split is impossible.
        StorageError: The disk is full or fails.
    """
    with session_factory(engine, writes=False)() as session:
        state = _read_state(session, dataset_id)
    manifest, warnings = build_manifest(state, storage, split=split, unlabelled=unlabelled)
    storage.put_manifest(manifest.digest, manifest.write)
    version = Version(
        id=new_id("ver"),
        dataset_id=dataset_id,
        digest=manifest.digest,
        classes=list(manifest.classes),
        split=asdict(split),
        statistics=manifest.statistics().as_dict(),
        warnings=warnings,
    )
    return _insert(engine, version)


def build_manifest(
    state: DatasetState, storage: Storage, *, split: SplitSpec, unlabelled: Unlabelled
) -> tuple[Manifest, list[str]]:
    """Return the manifest of a data set's state and what was assumed on the way.

    Raises:
        InvalidRequest: See `freeze`.
        DataError: The split is impossible.
    """
    items = _labelled_items(state, unlabelled)
    classes, warnings = _classes(state, items)
    missing = [item.name for item in state.items if item.key not in state.labels]
    if missing and unlabelled == "good":
        warnings.append(
            f"{len(missing)} frames without a label are taken as good: {_list(missing)}"
        )
    if missing and unlabelled == "exclude":
        warnings.append(f"{len(missing)} frames without a label are left out: {_list(missing)}")
    entries = assign_splits([_entry(item, state, storage) for item in items], split)
    manifest = Manifest(
        task="detection" if state.dataset.task == "detection" else "segmentation",
        classes=classes,
        items=entries,
        split_seed=split.seed,
        bayer=state.dataset.bayer,
    )
    return manifest, warnings + _box_warnings(manifest) + _split_warnings(manifest, split)


def get_version(session: Session, version_id: str) -> Version:
    """Return a version or raise NotFound."""
    version = session.get(Version, version_id)
    if version is None:
        raise NotFound(
            "version_not_found",
            f"there is no data-set version {version_id}",
            hint="GET /datasets/{id}/versions lists a data set's versions.",
        )
    return version


def select_versions(dataset_id: str) -> Select[Version]:
    """Select a data set's versions."""
    return select(Version).where(Version.dataset_id == dataset_id)


def _read_state(session: Session, dataset_id: str) -> DatasetState:
    dataset = get_dataset(session, dataset_id)
    frames = select(*_FRAME).where(Item.dataset_id == dataset_id).order_by(Item.name)
    labels = select(Label.key, Label.name, Label.width, Label.height, Label.content).where(
        Label.dataset_id == dataset_id
    )
    waiting = select_waiting_labels(dataset_id).with_only_columns(Label.name).order_by(Label.name)
    return DatasetState(
        dataset=dataset,
        items=tuple(session.execute(frames)),
        labels={
            key: (LabelFile(name, width, height), load_labels(content))
            for key, name, width, height, content in session.execute(
                labels.execution_options(yield_per=1000)
            )
        },
        waiting=tuple(session.scalars(waiting)),
    )


def _labelled_items(state: DatasetState, unlabelled: Unlabelled) -> list[Row[Any]]:
    """Return the frames that go into the version."""
    if state.waiting:
        raise InvalidRequest(
            "label_without_image",
            f"{len(state.waiting)} labels have no frame: {_list(state.waiting)}",
            file=state.waiting[0],
            where="file name",
            hint="Upload the frames they belong to, or delete the labels; names pair them.",
        )
    missing = [item for item in state.items if item.key not in state.labels]
    if missing and unlabelled == "reject":
        names = [item.name for item in missing]
        raise InvalidRequest(
            "missing_label",
            f"{len(missing)} frames have no label: {_list(names)}",
            file=names[0],
            where=f"item {missing[0].id}",
            hint='Upload their masks or annotations; or say "unlabelled": "good" if these frames '
            'show no defect, or "exclude" to leave them out.',
        )
    items = [item for item in state.items if unlabelled == "good" or item.key in state.labels]
    if not items:
        raise InvalidRequest(
            "dataset_empty",
            f"data set {state.dataset.name!r} has no frame to freeze",
            hint="Upload frames and their labels first.",
        )
    for item in items:
        _check_size(item, state)
    return items


def _check_size(item: Row[Any], state: DatasetState) -> None:
    # Uploads refuse this one by one; only two at once on a database whose writers overlap could
    # have let it through.
    label, _ = state.labels.get(item.key, (None, None))
    if label is not None and (label.width, label.height) != (item.width, item.height):
        raise InvalidRequest(
            "label_size_mismatch",
            f"The label is for {label.width}x{label.height} px, the picture {item.name} has "
            f"{item.width}x{item.height} px",
            file=label.name,
            where="whole file",
            hint="Delete one of the two and upload the right one.",
        )


def _classes(state: DatasetState, items: Sequence[Row[Any]]) -> tuple[tuple[str, ...], list[str]]:
    """Return the version's classes in order, and what was assumed about them."""
    if state.dataset.classes is not None:
        return tuple(state.dataset.classes), []
    found = [state.labels[item.key][1] for item in items if item.key in state.labels]
    named = set().union(*(named_classes(labels) for labels in found))
    masks = sum(isinstance(labels, MaskLabels) for labels in found)
    if masks and named - {UNDECLARED_MASK_CLASS}:
        raise InvalidRequest(
            "classes_undeclared",
            f"annotation files name {sorted(named)}, masks hold numbers, and the data set declares "
            "no classes that say which number is which",
            hint="Create the data set with its classes, in the order of the masks' values.",
        )
    if masks:
        assumed = f"what its {masks} masks mark is called {UNDECLARED_MASK_CLASS!r}."
        return (UNDECLARED_MASK_CLASS,), [f"The data set declares no classes; {assumed}"]
    if not named:
        raise InvalidRequest(
            "no_classes",
            "no frame has a labelled defect and the data set declares no classes",
            hint="Label some defects, or create the data set with its classes.",
        )
    return tuple(sorted(named)), []


def _entry(item: Row[Any], state: DatasetState, storage: Storage) -> ManifestItem:
    _, labels = state.labels.get(item.key, (None, GoodFrame()))
    return ManifestItem(
        name=item.name,
        key=item.key,
        file=storage.blob_relative(item.sha256),
        sha256=item.sha256,
        width=item.width,
        height=item.height,
        channels=1 if item.channels == 1 else 3,
        bit_depth=16 if item.bit_depth == 16 else 8,
        group=None,
        split=None,
        labels=labels,
    )


def _box_warnings(manifest: Manifest) -> list[str]:
    boxed = [item.name for item in manifest.items if isinstance(item.labels, BoxLabels)]
    if not boxed or manifest.task == "detection":
        return []
    learned = "segmentation learns the whole of a box as defective"
    if len(boxed) == sum(item.is_defective for item in manifest.items):
        learned = "a detector learns from them; a segmentation job will be refused"
    return [f"{len(boxed)} frames are labelled by boxes, and {learned}: {_list(boxed)}"]


def _split_warnings(manifest: Manifest, split: SplitSpec) -> list[str]:
    defective = {item.split for item in manifest.items if item.is_defective}
    return [
        f"The {name} split has no defective frame; what is measured on it says nothing about "
        "missed defects."
        for name in SPLIT_NAMES
        if split.share(name) > 0 and name not in defective
    ]


def _insert(engine: Engine, version: Version) -> tuple[Version, bool]:
    same = select(Version).where(
        Version.dataset_id == version.dataset_id, Version.digest == version.digest
    )
    writes = session_factory(engine)
    try:
        with writes.begin() as session:
            existing = session.scalar(same)
            if existing is not None:
                return existing, False
            session.add(version)
    except IntegrityError:
        # Only a database whose writers overlap comes here; the twin's row is now visible.
        with writes() as session:
            existing = session.scalar(same)
        if existing is None:
            raise
        return existing, False
    return version, True


def _list(names: Sequence[str]) -> str:
    shown = ", ".join(names[:MAX_NAMES_LISTED])
    return shown + (", ..." if len(names) > MAX_NAMES_LISTED else "")
