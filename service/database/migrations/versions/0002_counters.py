"""Counters on data sets, pairs marked on frames and labels, indices for their lists."""

from collections import Counter, defaultdict

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_MARK_LABELLED = """
    UPDATE items SET labelled = EXISTS (
        SELECT 1 FROM labels
        WHERE labels.dataset_id = items.dataset_id AND labels.key = items.key)
"""
_MARK_WAITING = """
    UPDATE labels SET waiting = NOT EXISTS (
        SELECT 1 FROM items
        WHERE items.dataset_id = labels.dataset_id AND items.key = labels.key)
"""
_COUNT = """
    UPDATE datasets SET
        item_count = (SELECT count(*) FROM items WHERE items.dataset_id = datasets.id),
        labelled_count = (SELECT count(*) FROM items
                          WHERE items.dataset_id = datasets.id AND items.labelled),
        label_count = (SELECT count(*) FROM labels WHERE labels.dataset_id = datasets.id)
"""


def upgrade() -> None:
    """Apply the revision; rows that are there already are counted and marked."""
    for name in ("item_count", "labelled_count", "label_count"):
        op.add_column(
            "datasets", sa.Column(name, sa.Integer(), nullable=False, server_default=sa.text("0"))
        )
    op.add_column(
        "datasets",
        sa.Column("class_counts", sa.JSON(), nullable=False, server_default=sa.text("'{}'")),
    )
    for table, name in (("items", "labelled"), ("labels", "waiting")):
        op.add_column(
            table, sa.Column(name, sa.Boolean(), nullable=False, server_default=sa.false())
        )
    for statement in (_MARK_LABELLED, _MARK_WAITING, _COUNT):
        op.execute(statement)
    _count_classes(op.get_bind())
    op.create_index("ix_items_labelled", "items", ["dataset_id", "labelled", "key"])
    op.create_index("ix_labels_waiting", "labels", ["dataset_id", "waiting", "key"])
    op.create_index("ix_versions_newest", "versions", ["dataset_id", "created_at", "id"])


def _count_classes(connection: sa.Connection) -> None:
    datasets = sa.table("datasets", sa.column("id"), sa.column("class_counts", sa.JSON()))
    labels = sa.table("labels", sa.column("dataset_id"), sa.column("classes", sa.JSON()))
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    # Databases differ in how they look into JSON, so it is read here, row by row.
    for dataset_id, classes in connection.execute(sa.select(labels.c.dataset_id, labels.c.classes)):
        counts[dataset_id].update(name for name, defects in classes.items() if defects)
    for dataset_id, found in counts.items():
        connection.execute(
            datasets.update()
            .where(datasets.c.id == dataset_id)
            .values(class_counts=dict(sorted(found.items())))
        )
