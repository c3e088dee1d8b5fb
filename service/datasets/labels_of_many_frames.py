"""Taking a COCO or CVAT file into a data set: labels for all frames it names, or for none."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from data.coco import LabelledFrame
from data.errors import DataError, LabelError, LayoutError
from data.labels import MaskLabels
from data.layout import sample_key
from service.database.tables import Dataset, Item, Label
from service.datasets.labels import count_classes, dump_labels, size_mismatch
from service.errors import FileOutcome
from service.ids import new_id

ManyFramesKind = Literal["coco", "cvat"]


@dataclass(frozen=True)
class _Rows:
    """What the data set holds, looked up once for all frames of the file.

    Attributes:
        frames: By key.
        by_stem: Frames by the last part of their key.
        labels: By key.
    """

    frames: dict[str, Item]
    by_stem: dict[str, list[Item]]
    labels: dict[str, Label]


def add_labels(
    session: Session,
    dataset: Dataset,
    name: str,
    frames: Sequence[LabelledFrame],
    kind: ManyFramesKind,
) -> FileOutcome:
    """Insert the labels that are not there yet.

    A file name without folders finds the one frame of that name in any folder.

    Args:
        session: Of a writing transaction; nothing of it may be kept if this raises.
        dataset: Where the labels go.
        name: The file as the user knows it.
        frames: Its content.
        kind: Its format.

    Raises:
        DataError: A frame has another label or another size, or its name fits several frames.
    """
    rows = _look_up(session, dataset.id)
    known = waiting = 0
    for frame in frames:
        item = _find_frame(rows, frame, name)
        key = item.key if item is not None else _key_of(frame, name)
        label = _label(dataset, name, key, frame, kind)
        existing = rows.labels.get(key)
        if existing is not None and existing.sha256 == label.sha256:
            known += 1
            continue
        _check(label, existing, item, name, frame)
        session.add(label)
        # A second entry that finds the same frame meets this one.
        rows.labels[key] = label
        waiting += item is None
    session.flush()
    if known == len(frames):
        return FileOutcome(name, "known")
    notes = [f"labels of {len(frames)} frames"]
    notes += [f"{known} of them were there already"] if known else []
    notes += [f"{waiting} of them wait for their frame"] if waiting else []
    masks = sum(isinstance(frame.labels, MaskLabels) for frame in frames)
    notes += [f"{masks} of them are run-length masks, kept as index masks"] if masks else []
    drawn = sum(frame.drawn for frame in frames)
    notes += [f"{drawn} outlines were drawn into the masks of their frames"] if drawn else []
    return FileOutcome(name, "accepted", notes=tuple(notes))


def _look_up(session: Session, dataset_id: str) -> _Rows:
    items = select(Item).filter_by(dataset_id=dataset_id).order_by(Item.key)
    frames = {item.key: item for item in session.scalars(items)}
    by_stem: dict[str, list[Item]] = {}
    for item in frames.values():
        by_stem.setdefault(item.key.rpartition("/")[2], []).append(item)
    labels = session.scalars(select(Label).filter_by(dataset_id=dataset_id))
    return _Rows(frames, by_stem, {label.key: label for label in labels})


def _key_of(frame: LabelledFrame, name: str) -> str:
    try:
        return sample_key(frame.file_name).key
    except LayoutError as error:
        raise _at(frame, name, error) from error


def _find_frame(rows: _Rows, frame: LabelledFrame, name: str) -> Item | None:
    key = _key_of(frame, name)
    if key in rows.frames or "/" in key:
        return rows.frames.get(key)
    candidates = rows.by_stem.get(key, [])
    if len(candidates) > 1:
        raise LabelError(
            "frame_ambiguous",
            f"{frame.file_name} may be {candidates[0].name} or {candidates[1].name}.",
            file=name,
            where=frame.name_where,
            hint="Write the folders into the file's file_name.",
        )
    return candidates[0] if candidates else None


def _label(
    dataset: Dataset, name: str, key: str, frame: LabelledFrame, kind: ManyFramesKind
) -> Label:
    content = dump_labels(frame.labels)
    return Label(
        id=new_id("lbl"),
        dataset_id=dataset.id,
        name=f"{name} {frame.file_name}",
        key=key,
        kind=kind,
        sha256=hashlib.sha256(content.encode()).hexdigest(),
        width=frame.width,
        height=frame.height,
        classes=count_classes(frame.labels, dataset.classes),
        content=content,
    )


def _check(
    label: Label, existing: Label | None, item: Item | None, name: str, frame: LabelledFrame
) -> None:
    if existing is not None:
        raise LabelError(
            "duplicate_name",
            f"The frame {frame.file_name} has another label already ({existing.name}).",
            file=name,
            where=frame.where,
            hint=f"Delete the older label first: DELETE /datasets/{label.dataset_id}/labels/"
            f"{existing.id}",
        )
    if item is not None and (item.width, item.height) != (label.width, label.height):
        raise size_mismatch((label.width, label.height), item, file=name, where=frame.where)


def _at(frame: LabelledFrame, name: str, error: DataError) -> LabelError:
    return LabelError(error.code, error.detail, file=name, where=frame.name_where, hint=error.hint)
