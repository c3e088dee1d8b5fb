"""``/ledger``: what was predicted, in order, and the newest hash to keep somewhere else."""

from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel

from service.api.dependencies import SettingsDependency
from service.ledger.journal import entries_after, head_of, ledger_files

router = APIRouter(tags=["ledger"])


class LedgerHead(BaseModel):
    """The newest entry's place, and how much is kept.

    ``hash`` written down elsewhere, on paper or in another system, shows later that no entry up to
    ``sequence`` was changed: ``hairline ledger verify --head HASH``.
    """

    sequence: int
    hash: str
    first_file: str | None
    bytes: int


class LedgerEntries(BaseModel):
    """Entries in order; ``next_after`` asks for those that follow, null if there are none yet."""

    items: list[dict[str, Any]]
    next_after: int | None


@router.get("/ledger")
def get_ledger_head(settings: SettingsDependency) -> LedgerHead:
    """Return the newest entry's sequence and hash."""
    files = ledger_files(settings.ledger_dir)
    head = head_of(settings.ledger_dir)
    return LedgerHead(
        sequence=head.sequence,
        hash=head.hash,
        first_file=files[0].name if files else None,
        bytes=sum(_size(path) for path in files),
    )


@router.get("/ledger/entries")
def list_ledger_entries(
    settings: SettingsDependency,
    after: Annotated[int, Query(ge=0, description="The last sequence that is known.")] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> LedgerEntries:
    """Return entries in the order they were written, each proven to be as it was written."""
    found = entries_after(settings.ledger_dir, after, limit)
    return LedgerEntries(
        items=found, next_after=found[-1]["sequence"] if len(found) == limit else None
    )


def _size(path: Path) -> int:
    # A file may be retired between being listed and being looked at.
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
