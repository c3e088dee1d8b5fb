"""Accepting files into a data set: each is checked whole, kept whole, and then becomes a row.

The blob is on disk before the row that names it, so a process killed in between leaves nothing a
reader could trip over, and sending the same file again completes it.  Two uploads of the same file
at once meet in the unique constraints of the tables: the later one is told what it would have been
told had it come a second later.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from sqlalchemy import Engine
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from data.bayer import decode_frame
from data.class_masks import refuse_single_mask
from data.coco import LabelledFrame, looks_like_coco, read_coco
from data.cvat import looks_like_cvat, read_cvat
from data.errors import DataError, LabelError, LayoutError
from data.label_files import LabelFile, read_label_file
from data.layout import SampleKey, clean_name
from data.recognition import PAIRED_BY_NAME, Layout
from service.database.engine import session_factory
from service.database.tables import Dataset, Item, Label
from service.datasets.coco_labels import ManyFramesKind, add_labels
from service.datasets.incoming import IncomingFile, read_limited, upload_order
from service.datasets.kept_blobs import KeptBlobs
from service.datasets.labels import count_classes, dump_labels, good_label, size_mismatch
from service.datasets.repository import (
    find_item,
    find_item_by_content,
    find_label,
    get_dataset,
    get_item,
)
from service.errors import FileOutcome
from service.ids import new_id
from service.settings import Settings
from service.storage import Storage

# A name that is refused for its length is not repeated whole in the answer.
_NAME_CHARACTERS_SHOWN = 300


@dataclass(frozen=True)
class _Sample:
    """A file whose name has been understood and whose content has been read."""

    name: str
    key: SampleKey
    raw: bytes
    blobs: KeptBlobs
    sha256: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sha256", hashlib.sha256(self.raw).hexdigest())


class Uploads:
    """Takes files into one data set.

    Args:
        engine: Of the database.
        storage: Keeps the files.
        settings: Say how large a file may be.
        dataset_id: The data set.
        layout: Says what each file is; none of those given may be left out by it.

    Raises:
        NotFound: There is no such data set.
    """

    def __init__(
        self,
        engine: Engine,
        storage: Storage,
        settings: Settings,
        dataset_id: str,
        layout: Layout = PAIRED_BY_NAME,
    ) -> None:
        self._reads = session_factory(engine, writes=False)
        self._writes = session_factory(engine)
        self._storage = storage
        self._settings = settings
        self._layout = layout
        with self._reads() as session:
            self._dataset: Dataset = get_dataset(session, dataset_id)

    def accept_all(self, files: Sequence[IncomingFile]) -> tuple[FileOutcome, ...]:
        """Accept each file, frames before labels, and return the outcomes in the order given."""
        outcomes: dict[int, FileOutcome] = {}
        for index in upload_order([file.name for file in files]):
            outcomes[index] = self.accept(files[index])
        return tuple(outcomes[index] for index in range(len(files)))

    def accept(self, file: IncomingFile) -> FileOutcome:
        """Accept one file or say why not; one that is known restores what storage has lost of it.

        Side effects: a blob, then a row in a transaction of its own.

        Raises:
            StorageError: The disk is full or fails.
        """
        try:
            sample = self._read(file)
            return sample.blobs.tell(self._accept(sample))
        except DataError as error:
            return rejected(file.name, error)

    def _accept(self, sample: _Sample) -> FileOutcome:
        if sample.key.kind == "image":
            outcome = self._accept_image(sample)
            return self._declare_good(outcome) if sample.key.is_good else outcome
        if sample.key.kind == "labelme" and looks_like_coco(sample.raw):
            return self._accept_coco(sample)
        if sample.key.kind == "voc" and looks_like_cvat(sample.raw):
            frames = read_cvat(sample.raw, name=sample.name, classes=self._dataset.classes)
            return self._accept_frames(sample, frames, "cvat")
        return self._accept_label(sample)

    def accept_mask(self, name: str, key: str, raw: bytes) -> FileOutcome:
        """Accept an index mask that was made of a frame's files, as `accept` does.

        Args:
            name: What the answers call it.
            key: Of its frame.
            raw: A PNG file.
        """
        try:
            sample = _Sample(name, SampleKey("mask", key), raw, KeptBlobs(self._storage))
            return self._accept_label(sample)
        except DataError as error:
            return rejected(name, error)

    def _read(self, file: IncomingFile) -> _Sample:
        name = clean_name(file.name)
        key = self._layout.sample(name)
        assert key is not None  # The caller has seen to it.
        raw = read_limited(file, self._settings.max_file_bytes)
        return _Sample(name, key, raw, KeptBlobs(self._storage))

    def _accept_image(self, sample: _Sample) -> FileOutcome:
        with self._reads() as session:
            settled = _image_conflict(session, self._dataset.id, sample, size=None)
        if settled is not None:
            if settled.outcome == "known":
                sample.blobs.keep(sample.raw, sample.sha256)
            return settled
        decoded = decode_frame(sample.raw, name=sample.name, bayer=self._dataset.bayer)
        height, width = decoded.pixels.shape[:2]
        item = Item(
            id=new_id("itm"),
            dataset_id=self._dataset.id,
            name=sample.name,
            key=sample.key.key,
            sha256=sample.sha256,
            byte_count=len(sample.raw),
            width=width,
            height=height,
            channels=1 if decoded.pixels.ndim == 2 else 3,
            bit_depth=decoded.pixels.dtype.itemsize * 8,
            notes=list(decoded.notes),
        )
        return self._insert(
            sample,
            item,
            lambda session: _image_conflict(
                session, self._dataset.id, sample, size=(width, height)
            ),
            lambda _session: FileOutcome(sample.name, "accepted", item.id, notes=decoded.notes),
        )

    def _accept_label(self, sample: _Sample) -> FileOutcome:
        with self._reads() as session:
            settled = _label_conflict(session, self._dataset.id, sample, size=None)
            frame = find_item(session, self._dataset.id, sample.key.key)
            if settled is None and frame is None:
                self._refuse_single_mask(session, sample)
        if settled is not None:
            if settled.outcome == "known":
                self._keep_known_label(sample)
            return settled
        read = self._read_label(sample, frame)
        label = Label(
            id=new_id("lbl"),
            dataset_id=self._dataset.id,
            name=sample.name,
            key=sample.key.key,
            kind=sample.key.kind,
            sha256=sample.sha256,
            width=read.width,
            height=read.height,
            classes=count_classes(read.labels, self._dataset.classes),
            content=dump_labels(read.labels),
        )

        def outcome(session: Session) -> FileOutcome:
            item = find_item(session, label.dataset_id, label.key)
            if item is None:
                return FileOutcome(sample.name, "accepted", notes=("waits for its frame",))
            return FileOutcome(sample.name, "accepted", item.id)

        return self._insert(
            sample,
            label,
            lambda session: _label_conflict(
                session, self._dataset.id, sample, size=(read.width, read.height)
            ),
            outcome,
        )

    def _read_label(self, sample: _Sample, frame: Item | None) -> LabelFile:
        assert sample.key.kind != "image"  # `_accept` has seen to it.
        return read_label_file(
            sample.raw,
            name=sample.name,
            kind=sample.key.kind,
            classes=self._dataset.classes,
            file=self._storage.blob_relative(sample.sha256),
            sha256=sample.sha256,
            numbered=self._layout.numbered,
            class_name=sample.key.class_name,
            keep_mask=sample.blobs.keep_mask,
            frame_size=None if frame is None else (frame.width, frame.height),
        )

    def _keep_known_label(self, sample: _Sample) -> None:
        sample.blobs.keep(sample.raw, sample.sha256)
        if sample.key.class_name is not None:
            # The index mask that was made from it may be what storage has lost.
            self._read_label(sample, None)

    def _refuse_single_mask(self, session: Session, sample: _Sample) -> None:
        if sample.key.kind == "mask" and self._layout.name in (None, "masks"):
            known = partial(find_item, session, self._dataset.id)
            classes = self._dataset.classes or ()
            refuse_single_mask(sample.name, classes, lambda key: known(key) is not None)

    def _declare_good(self, outcome: FileOutcome) -> FileOutcome:
        """Label a frame that its folder declares good, also one that is known already."""
        if outcome.item is None:
            return outcome
        with self._writes.begin() as session:
            item = get_item(session, self._dataset.id, outcome.item)
            existing = find_label(session, item.dataset_id, item.key)
            if existing is None:
                session.add(good_label(item))
                return outcome
            if not existing.classes:
                return outcome
            return rejected(outcome.file, _labelled_already(existing))

    def _accept_coco(self, sample: _Sample) -> FileOutcome:
        frames = read_coco(
            sample.raw,
            name=sample.name,
            classes=self._dataset.classes,
            keep_mask=sample.blobs.keep_mask,
        )
        return self._accept_frames(sample, frames, "coco")

    def _accept_frames(
        self, sample: _Sample, frames: Sequence[LabelledFrame], kind: ManyFramesKind
    ) -> FileOutcome:
        try:
            return self._add_frames(sample, frames, kind)
        except IntegrityError:
            # Only a database whose writers overlap comes here; what won is now seen.
            return self._add_frames(sample, frames, kind)

    def _add_frames(
        self, sample: _Sample, frames: Sequence[LabelledFrame], kind: ManyFramesKind
    ) -> FileOutcome:
        with self._writes.begin() as session:
            outcome = add_labels(session, self._dataset, sample.name, frames, kind)
            # Still before the rows are committed, and not for a file that was refused.
            sample.blobs.keep(sample.raw, sample.sha256)
            return outcome

    def _insert(
        self,
        sample: _Sample,
        row: Item | Label,
        conflict: Callable[[Session], FileOutcome | None],
        outcome: Callable[[Session], FileOutcome],
    ) -> FileOutcome:
        # A file that is refused leaves no blob behind.
        with self._reads() as session:
            settled = conflict(session)
        if settled is not None:
            return settled
        sample.blobs.keep(sample.raw, sample.sha256)
        sample.blobs.expect_missing()
        try:
            with self._writes.begin() as session:
                settled = conflict(session)
                if settled is not None:
                    return settled
                session.add(row)
                session.flush()
                return outcome(session)
        except IntegrityError:
            # Only a database whose writers overlap comes here; the winner's row is now visible.
            with self._reads() as session:
                settled = conflict(session)
            if settled is None:
                raise
            return settled


def _image_conflict(
    session: Session, dataset_id: str, sample: _Sample, *, size: tuple[int, int] | None
) -> FileOutcome | None:
    """Return the outcome that the rows already decide for a frame, None if it may be added."""
    same_key = find_item(session, dataset_id, sample.key.key)
    if same_key is not None:
        if same_key.sha256 == sample.sha256:
            return FileOutcome(sample.name, "known", same_key.id)
        return rejected(
            sample.name,
            LayoutError(
                "duplicate_name",
                f"The data set has another picture under this name ({same_key.name}).",
                hint="Rename one of the two; or delete the older with DELETE "
                f"/datasets/{dataset_id}/items/{same_key.id} and upload again.",
            ),
        )
    same_content = find_item_by_content(session, dataset_id, sample.sha256)
    if same_content is not None:
        return rejected(
            sample.name,
            LayoutError(
                "duplicate_content",
                f"The same picture is in the data set as {same_content.name}.",
                where="whole file",
                hint="Leave one of the two out: a frame counted twice would end up in training "
                "and in the test of what was learned.",
            ),
        )
    label = find_label(session, dataset_id, sample.key.key)
    if size is None or label is None or (label.width, label.height) == size:
        return None
    return rejected(
        sample.name,
        LabelError(
            "label_size_mismatch",
            f"The picture has {size[0]}x{size[1]} px, its label {label.name} is for "
            f"{label.width}x{label.height} px.",
            hint="Upload the picture that was labelled, or delete the label with DELETE "
            f"/datasets/{dataset_id}/labels/{label.id}; labels are never rescaled.",
        ),
    )


def _label_conflict(
    session: Session, dataset_id: str, sample: _Sample, *, size: tuple[int, int] | None
) -> FileOutcome | None:
    """Return the outcome that the rows already decide for a label, None if it may be added."""
    item = find_item(session, dataset_id, sample.key.key)
    same_key = find_label(session, dataset_id, sample.key.key)
    if same_key is not None:
        if same_key.sha256 == sample.sha256:
            return FileOutcome(sample.name, "known", item.id if item else None)
        return rejected(sample.name, _labelled_already(same_key))
    if size is None or item is None or (item.width, item.height) == size:
        return None
    return rejected(sample.name, size_mismatch(size, item))


def _labelled_already(label: Label) -> LayoutError:
    return LayoutError(
        "duplicate_name",
        f"The frame has another label already ({label.name}).",
        hint=f"Delete the older label first: DELETE /datasets/{label.dataset_id}/labels/{label.id}",
    )


def rejected(name: str, error: DataError) -> FileOutcome:
    """Return the outcome of a file that the data room refused."""
    return FileOutcome(
        file=name[:_NAME_CHARACTERS_SHOWN],
        outcome="rejected",
        code=error.code,
        detail=error.detail,
        where=error.where or _place(error),
        hint=error.hint,
    )


def _place(error: DataError) -> str:
    """Return the place of an error that concerns no single spot of its file."""
    return "file name" if isinstance(error, LayoutError) else "whole file"
