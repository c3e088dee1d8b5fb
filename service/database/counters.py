"""What a data set's row counts and which frame has which label, kept in the writing transaction.

Counting 100,000 rows takes most of a second, and a list of data sets would do it for each of them.
So a session that adds or deletes frames and labels brings the counters along when it flushes: they
are committed with the rows or not at all.  A statement that inserts or deletes such rows past the
session (``session.execute(delete(Item))``) is not seen here and must not be written.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from sqlalchemy import event, select, update
from sqlalchemy.orm import Session, UOWTransaction

from service.database.tables import Dataset, Item, Label

# Keys in one statement: far below the 32,766 variables that SQLite takes.
_KEYS_A_STATEMENT = 1000

_COUNTERS = ("item_count", "labelled_count", "label_count", "class_counts")


class CountingSession(Session):
    """A session whose flushes keep `Dataset`'s counters, `Item.labelled` and `Label.waiting`."""


@dataclass
class _Change:
    """Frames and labels of one data set that a flush inserts and deletes, by key."""

    items_added: dict[str, Item] = field(default_factory=dict)
    items_removed: set[str] = field(default_factory=set)
    labels_added: dict[str, Label] = field(default_factory=dict)
    labels_removed: dict[str, Label] = field(default_factory=dict)

    @property
    def keys(self) -> list[str]:
        return sorted(
            self.items_added.keys()
            | self.items_removed
            | self.labels_added.keys()
            | self.labels_removed.keys()
        )


@event.listens_for(CountingSession, "before_flush")
def _keep_counters(session: Session, _context: UOWTransaction, _instances: object) -> None:
    changes: defaultdict[str, _Change] = defaultdict(_Change)
    for row in session.new:
        if isinstance(row, Item):
            changes[row.dataset_id].items_added[row.key] = row
        elif isinstance(row, Label):
            changes[row.dataset_id].labels_added[row.key] = row
    for row in session.deleted:
        if isinstance(row, Item):
            changes[row.dataset_id].items_removed.add(row.key)
        elif isinstance(row, Label):
            changes[row.dataset_id].labels_removed[row.key] = row
    # In one order, so that two transactions over the same data sets can't wait for each other.
    for dataset_id in sorted(changes):
        dataset = _lock(session, dataset_id)
        # Without a data set the foreign key refuses the rows.
        if dataset is not None:
            _apply(session, dataset, changes[dataset_id])


def _lock(session: Session, dataset_id: str) -> Dataset | None:
    """Return the data set with its counters as they are now, held until the transaction ends.

    Where writers overlap, the lock makes the later one see the earlier one's rows before it looks
    for the other half of a pair.
    """
    dataset = session.get(Dataset, dataset_id)
    if dataset is None:
        pending = (row for row in session.new if isinstance(row, Dataset) and row.id == dataset_id)
        return next(pending, None)
    session.refresh(dataset, _COUNTERS, with_for_update=True)
    return dataset


def _apply(session: Session, dataset: Dataset, change: _Change) -> None:
    items = _present(session, Item, dataset.id, change.keys)
    labels = _present(session, Label, dataset.id, change.keys)
    items_after = (items - change.items_removed) | change.items_added.keys()
    labels_after = (labels - change.labels_removed.keys()) | change.labels_added.keys()
    for key, item in change.items_added.items():
        item.labelled = key in labels_after
    for key, label in change.labels_added.items():
        label.waiting = key not in items_after
    items_kept = items & items_after - change.items_added.keys()
    _mark(session, Item, dataset.id, items_kept & labels_after - labels, labelled=True)
    _mark(session, Item, dataset.id, items_kept & labels - labels_after, labelled=False)
    labels_kept = labels & labels_after - change.labels_added.keys()
    _mark(session, Label, dataset.id, labels_kept & items_after - items, waiting=False)
    _mark(session, Label, dataset.id, labels_kept & items - items_after, waiting=True)
    # A data set that is inserted by the same flush has no values yet.
    dataset.item_count = (dataset.item_count or 0) + len(items_after) - len(items)
    dataset.label_count = (dataset.label_count or 0) + len(labels_after) - len(labels)
    paired = len(items_after & labels_after) - len(items & labels)
    dataset.labelled_count = (dataset.labelled_count or 0) + paired
    dataset.class_counts = _count_classes(dataset.class_counts or {}, change)


def _count_classes(before: dict[str, int], change: _Change) -> dict[str, int]:
    counts = Counter(before)
    for label in change.labels_added.values():
        counts.update(label.carried_classes)
    for label in change.labels_removed.values():
        counts.subtract(label.carried_classes)
    return {name: number for name, number in sorted(counts.items()) if number}


def _present(
    session: Session, entity: type[Item] | type[Label], dataset_id: str, keys: list[str]
) -> set[str]:
    """Return those of the keys that rows of the data set have now."""
    found: set[str] = set()
    for some in _batches(keys):
        found.update(
            session.scalars(
                select(entity.key).where(entity.dataset_id == dataset_id, entity.key.in_(some))
            )
        )
    return found


def _mark(
    session: Session,
    entity: type[Item] | type[Label],
    dataset_id: str,
    keys: set[str],
    **values: bool,
) -> None:
    for some in _batches(sorted(keys)):
        session.execute(
            update(entity)
            .where(entity.dataset_id == dataset_id, entity.key.in_(some))
            .values(**values),
            # Comparing every row that the session holds would take longer than the statement.
            execution_options={"synchronize_session": False},
        )


def _batches(keys: list[str]) -> Iterable[list[str]]:
    for start in range(0, len(keys), _KEYS_A_STATEMENT):
        yield keys[start : start + _KEYS_A_STATEMENT]
