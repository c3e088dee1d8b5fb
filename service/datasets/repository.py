"""Rows of data sets, their frames and their labels."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Select, select, true
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from data.bayer import BayerPattern
from service.database.tables import Dataset, Item, Label
from service.errors import Conflict, NotFound
from service.ids import new_id

# A message that lists names stays readable on one screen.
MAX_NAMES_LISTED = 20


@dataclass(frozen=True)
class DatasetCounts:
    """How far a data set is labelled.

    Attributes:
        items: Frames.
        labelled: Frames that have a label.
        labels_without_image: Labels that wait for their frame.
        classes: Class name to the number of labels that carry it.
    """

    items: int
    labelled: int
    labels_without_image: int
    classes: dict[str, int]

    @property
    def unlabelled(self) -> int:
        """Frames without a label."""
        return self.items - self.labelled


def create_dataset(
    session: Session,
    *,
    name: str,
    task: str,
    classes: Sequence[str] | None,
    bayer: BayerPattern | None = None,
) -> Dataset:
    """Insert a data set.

    Raises:
        Conflict: The name is taken.
    """
    dataset = Dataset(
        id=new_id("ds"),
        name=name,
        task=task,
        classes=list(classes) if classes else None,
        bayer=bayer,
    )
    try:
        with session.begin_nested():
            session.add(dataset)
    except IntegrityError as error:
        raise Conflict(
            "dataset_name_taken",
            f"there is a data set called {name!r} already",
            where="/name",
            hint="Choose another name, or use the existing data set; GET /datasets lists them.",
        ) from error
    return dataset


def get_dataset(session: Session, dataset_id: str) -> Dataset:
    """Return a data set or raise NotFound."""
    dataset = session.get(Dataset, dataset_id)
    if dataset is None:
        raise NotFound(
            "dataset_not_found",
            f"there is no data set {dataset_id}",
            hint="GET /datasets lists them.",
        )
    return dataset


def get_item(session: Session, dataset_id: str, item_id: str) -> Item:
    """Return a frame of the data set or raise NotFound."""
    item = session.get(Item, item_id)
    if item is None or item.dataset_id != dataset_id:
        raise NotFound(
            "item_not_found",
            f"there is no item {item_id} in data set {dataset_id}",
            hint=f"GET /datasets/{dataset_id}/items lists them.",
        )
    return item


def get_label(session: Session, item: Item) -> Label:
    """Return a frame's label or raise NotFound."""
    label = find_label(session, item.dataset_id, item.key)
    if label is None:
        raise NotFound(
            "label_not_found",
            f"{item.name} has no label",
            file=item.name,
            hint="Upload a mask or an annotation file whose name pairs with the frame's.",
        )
    return label


def find_item(session: Session, dataset_id: str, key: str) -> Item | None:
    """Return the frame with this key, None if there is none."""
    return session.scalar(select(Item).where(Item.dataset_id == dataset_id, Item.key == key))


def find_item_by_content(session: Session, dataset_id: str, sha256: str) -> Item | None:
    """Return the frame with this content, None if there is none."""
    return session.scalar(select(Item).where(Item.dataset_id == dataset_id, Item.sha256 == sha256))


def find_label(session: Session, dataset_id: str, key: str) -> Label | None:
    """Return the label with this key, None if there is none."""
    return session.scalar(select(Label).where(Label.dataset_id == dataset_id, Label.key == key))


def labels_of(session: Session, items: Sequence[Item]) -> dict[str, Label]:
    """Return the labels of frames of one data set, by key."""
    if not items:
        return {}
    keys = [item.key for item in items]
    found = session.scalars(
        select(Label).where(Label.dataset_id == items[0].dataset_id, Label.key.in_(keys))
    )
    return {label.key: label for label in found}


def delete_item(session: Session, item: Item) -> None:
    """Remove a frame and its label; versions frozen before keep both."""
    label = find_label(session, item.dataset_id, item.key)
    if label is not None:
        session.delete(label)
    session.delete(item)


def select_items(dataset_id: str, *, labelled: bool | None = None) -> Select[Item]:
    """Select a data set's frames, or those with or without a label."""
    statement = select(Item).where(Item.dataset_id == dataset_id)
    return statement if labelled is None else statement.where(Item.labelled == labelled)


def select_waiting_labels(dataset_id: str) -> Select[Label]:
    """Select the labels whose frame has not arrived."""
    return select(Label).where(Label.dataset_id == dataset_id, Label.waiting == true())


def counts_of(dataset: Dataset) -> DatasetCounts:
    """Return a data set's counts as its row keeps them."""
    return DatasetCounts(
        items=dataset.item_count,
        labelled=dataset.labelled_count,
        labels_without_image=dataset.label_count - dataset.labelled_count,
        classes=dict(dataset.class_counts),
    )
