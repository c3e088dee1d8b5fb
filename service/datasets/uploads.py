"""Accepting files into a data set: each is checked whole, kept whole, and then becomes a row.

The blob is on disk before the row that names it, so a process killed in between leaves nothing a
reader could trip over, and sending the same file again completes it.  Two uploads of the same file
at once meet in the unique constraints of the tables: the later one is told what it would have been
told had it come a second later.
"""

from collections.abc import Callable, Sequence
from functools import partial

from sqlalchemy import Engine
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from data.bayer import decode_frame
from data.class_masks import refuse_single_mask
from data.coco import LabelledFrame, looks_like_coco, read_coco
from data.cvat import looks_like_cvat, read_cvat
from data.errors import DataError
from data.label_files import LabelFile, read_label_file
from data.layout import SampleKey, clean_name
from data.recognition import PAIRED_BY_NAME, Layout
from service.database.engine import session_factory
from service.database.tables import Dataset, Item, Label
from service.datasets.incoming import (
    IncomingFile,
    Journal,
    ReadCount,
    Sample,
    read_limited,
    upload_order,
)
from service.datasets.kept_blobs import KeptBlobs
from service.datasets.labels import count_classes, dump_labels, good_label
from service.datasets.labels_of_many_frames import ManyFramesKind, add_labels
from service.datasets.repository import find_item, find_label, get_dataset, get_item
from service.datasets.upload_conflicts import (
    image_conflict,
    label_conflict,
    labelled_already,
    rejected,
)
from service.errors import FileOutcome
from service.ids import new_id
from service.settings import Settings
from service.storage import Storage


class Uploads:
    """Takes files into one data set.

    Args:
        engine: Of the database.
        storage: Keeps the files.
        settings: Say how large a file may be.
        dataset_id: The data set.
        layout: Says what each file is; none of those given may be left out by it.

    Attributes:
        read: What was read of the files.
        decoded_frames: How many frames were decoded.

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
        self.read = ReadCount()
        self.decoded_frames = 0
        with self._reads() as session:
            self._dataset: Dataset = get_dataset(session, dataset_id)

    def accept_all(self, files: Sequence[IncomingFile]) -> tuple[FileOutcome, ...]:
        """Accept each file, frames before labels, and return the outcomes in the order given."""
        outcomes: dict[int, FileOutcome] = {}
        for index in upload_order([file.name for file in files]):
            outcomes[index] = self.accept(files[index])
        return tuple(outcomes[index] for index in range(len(files)))

    def accept(self, file: IncomingFile, journal: Journal | None = None) -> FileOutcome:
        """Accept one file or say why not; one that is known restores what storage has lost of it.

        Args:
            file: The file.
            journal: Writes the outcome down in the transaction that adds rows; it is not called
                for a file that adds none.

        Side effects: a blob, then rows in a transaction of their own.

        Raises:
            StorageError: The disk is full or fails.
        """
        try:
            sample = self._read(file, journal)
            return sample.blobs.tell(self._accept(sample))
        except DataError as error:
            return rejected(file.name, error)

    def _accept(self, sample: Sample) -> FileOutcome:
        if sample.key.kind == "image":
            outcome = self._accept_image(sample)
            is_undeclared = sample.key.is_good and outcome.outcome == "known"
            return self._declare_known_good(sample, outcome) if is_undeclared else outcome
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
            sample = Sample(name, SampleKey("mask", key), raw, KeptBlobs(self._storage))
            return self._accept_label(sample)
        except DataError as error:
            return rejected(name, error)

    def _read(self, file: IncomingFile, journal: Journal | None) -> Sample:
        name = clean_name(file.name)
        key = self._layout.sample(name)
        assert key is not None  # The caller has seen to it.
        raw = read_limited(file, self._settings.max_file_bytes, self.read)
        return Sample(name, key, raw, KeptBlobs(self._storage), journal)

    def _accept_image(self, sample: Sample) -> FileOutcome:
        with self._reads() as session:
            settled = image_conflict(session, self._dataset.id, sample, size=None)
        if settled is not None:
            if settled.outcome == "known":
                sample.blobs.keep(sample.raw, sample.sha256)
            return settled
        decoded = decode_frame(sample.raw, name=sample.name, bayer=self._dataset.bayer)
        self.decoded_frames += 1
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

        def outcome(session: Session) -> FileOutcome:
            accepted = FileOutcome(sample.name, "accepted", item.id, notes=decoded.notes)
            return _declare_good(session, item, accepted) if sample.key.is_good else accepted

        return self._insert(
            sample,
            item,
            lambda session: image_conflict(session, self._dataset.id, sample, size=(width, height)),
            outcome,
        )

    def _accept_label(self, sample: Sample) -> FileOutcome:
        with self._reads() as session:
            settled = label_conflict(session, self._dataset.id, sample, size=None)
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
            lambda session: label_conflict(
                session, self._dataset.id, sample, size=(read.width, read.height)
            ),
            outcome,
        )

    def _read_label(self, sample: Sample, frame: Item | None) -> LabelFile:
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

    def _keep_known_label(self, sample: Sample) -> None:
        sample.blobs.keep(sample.raw, sample.sha256)
        if sample.key.class_name is not None:
            # The index mask that was made from it may be what storage has lost.
            self._read_label(sample, None)

    def _refuse_single_mask(self, session: Session, sample: Sample) -> None:
        if sample.key.kind == "mask" and self._layout.name in (None, "masks"):
            known = partial(find_item, session, self._dataset.id)
            classes = self._dataset.classes or ()
            refuse_single_mask(sample.name, classes, lambda key: known(key) is not None)

    def _declare_known_good(self, sample: Sample, known: FileOutcome) -> FileOutcome:
        """Label a frame that was there without the word of its folder."""
        assert known.item is not None  # A frame that is known is one.
        with self._writes.begin() as session:
            item = get_item(session, self._dataset.id, known.item)
            outcome = _declare_good(session, item, known)
            sample.write_down(session, outcome)
            return outcome

    def _accept_coco(self, sample: Sample) -> FileOutcome:
        frames = read_coco(
            sample.raw,
            name=sample.name,
            classes=self._dataset.classes,
            keep_mask=sample.blobs.keep_mask,
        )
        return self._accept_frames(sample, frames, "coco")

    def _accept_frames(
        self, sample: Sample, frames: Sequence[LabelledFrame], kind: ManyFramesKind
    ) -> FileOutcome:
        try:
            return self._add_frames(sample, frames, kind)
        except IntegrityError:
            # Only a database whose writers overlap comes here; what won is now seen.
            return self._add_frames(sample, frames, kind)

    def _add_frames(
        self, sample: Sample, frames: Sequence[LabelledFrame], kind: ManyFramesKind
    ) -> FileOutcome:
        with self._writes.begin() as session:
            outcome = add_labels(session, self._dataset, sample.name, frames, kind)
            # Still before the rows are committed, and not for a file that was refused.
            sample.blobs.keep(sample.raw, sample.sha256)
            sample.write_down(session, outcome)
            return outcome

    def _insert(
        self,
        sample: Sample,
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
                settled = outcome(session)
                sample.write_down(session, settled)
                return settled
        except IntegrityError:
            # Only a database whose writers overlap comes here; the winner's row is now visible.
            with self._reads() as session:
                settled = conflict(session)
            if settled is None:
                raise
            return settled


def _declare_good(session: Session, item: Item, outcome: FileOutcome) -> FileOutcome:
    """Label a frame that its folder declares good, and return what becomes of its file."""
    existing = find_label(session, item.dataset_id, item.key)
    if existing is None:
        session.add(good_label(item))
        session.flush()
    elif existing.classes:
        return rejected(outcome.file, labelled_already(existing))
    return outcome
