"""How far an import is, written in the transactions that make its files rows."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import Engine, update
from sqlalchemy.orm import Session

from data.recognition import Layout
from service.database.engine import session_factory
from service.database.tables import Import
from service.datasets.kept_blobs import RESTORED_NOTES
from service.datasets.repository import get_dataset
from service.errors import FileOutcome, NotFound

PENDING = ("queued", "running")

# Files that are refused or left out add no row, and would be refused or left out again: how many
# there were is written no more often.  The list of those refused is written whole each time.
_PROGRESS_EVERY_S = 1.0
# Notes of single files; beyond, their number is told.
_MOST_NOTES = 50


class ImportLost(Exception):  # noqa: N818 - it says what is the case.
    """Another worker owns the import now."""


class ImportProgress:
    """An import's row, written only while its owner is the one at the beginning.

    A file that becomes a row is counted in the same transaction (`journal`): after a kill it is
    both or neither.

    Args:
        engine: Of the database.
        import_id: A claimed import.

    Raises:
        NotFound: It is no import under way.
    """

    def __init__(self, engine: Engine, import_id: str) -> None:
        self._writes = session_factory(engine)
        self._id = import_id
        with session_factory(engine, writes=False)() as session:
            row = session.get(Import, import_id)
            if row is None or row.status not in PENDING:
                raise NotFound("import_not_found", f"{import_id} is no import under way")
            self.dataset_id = row.dataset_id
            self.done = row.done
            self.layout = row.layout
            self.classes = get_dataset(session, row.dataset_id).classes
            self.outcomes: list[dict[str, Any]] = list(row.outcomes)
            self._owner = row.owner
        self._journaled: FileOutcome | None = None
        self._told_is_written = True
        self._written_at = time.monotonic()

    def journal(self, session: Session, outcome: FileOutcome) -> None:
        """Count a file in the transaction that makes it a row; `add` must follow.

        Raises:
            ImportLost: Another worker owns the import; the row must not be kept.
        """
        outcomes, layout = self._told_with(outcome)
        values: dict[str, Any] = {"done": self.done + 1}
        if not self._told_is_written or (outcomes, layout) != (self.outcomes, self.layout):
            values |= {"outcomes": outcomes, "layout": layout}
        self._update(session, status="running", **values)
        self._journaled = outcome

    def add(self, outcome: FileOutcome) -> None:
        """Count a file, and write it down unless `journal` has or it may be refused again.

        Raises:
            ImportLost: Another worker owns the import.
        """
        # Where the transaction was undone, another outcome than the one of that time came of it.
        is_written = self._journaled == outcome
        told = self._told_with(outcome)
        self._told_is_written &= told == (self.outcomes, self.layout)
        self.outcomes, self.layout = told
        self.done += 1
        self._journaled = None
        if is_written:
            self._note_written()
        elif outcome.outcome != "rejected" or self._is_due():
            self._write(status="running")

    def pass_over(self) -> None:
        """Count a file that the layout leaves out."""
        self.done += 1
        if self._is_due():
            self._write(status="running")

    def recognize(self, layout: Layout) -> None:
        """Write the layout, keeping what an interrupted run noted about files."""
        noted = (self.layout or {}).get("notes", [])
        self.layout = {
            "name": layout.name,
            "is_named": layout.is_named,
            "evidence": layout.evidence,
            "notes": _added(layout.notes, noted),
        }
        self._write(status="running")

    def end(self, status: str, error: dict[str, Any] | None = None) -> None:
        """Write the last of it."""
        self._write(status=status, error=error, owner=None, lease_until=None)

    def _told_with(
        self, outcome: FileOutcome
    ) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
        """Return the outcomes and the layout as they are behind a file."""
        outcomes, layout = self.outcomes, self.layout
        if outcome.outcome == "rejected":
            outcomes = [*outcomes, asdict(outcome)]
        # A frame's own notes are in its item; others are nowhere else.
        elsewhere = [n for n in outcome.notes if outcome.item is None or n in RESTORED_NOTES]
        if elsewhere and layout is not None:
            found = [f"{outcome.file}: {note}" for note in elsewhere]
            layout = layout | {"notes": _added(layout["notes"], found)}
        return outcomes, layout

    def _is_due(self) -> bool:
        return time.monotonic() - self._written_at >= _PROGRESS_EVERY_S

    def _write(self, **values: Any) -> None:
        values |= {"done": self.done, "outcomes": self.outcomes, "layout": self.layout}
        with self._writes.begin() as session:
            self._update(session, **values)
        self._note_written()

    def _update(self, session: Session, **values: Any) -> None:
        statement = (
            update(Import)
            .where(Import.id == self._id, Import.status.in_(PENDING))
            .where(Import.owner.is_not_distinct_from(self._owner))
            .values(**values)
            .returning(Import.id)
        )
        if session.scalar(statement) is None:
            raise ImportLost(self._id)

    def _note_written(self) -> None:
        self._told_is_written = True
        self._written_at = time.monotonic()


def _added(notes: Sequence[str], more: Sequence[str]) -> list[str]:
    """Return the notes with those that are new, up to a number that a person reads."""
    return [*notes, *(note for note in more if note not in notes)][:_MOST_NOTES]
