"""An import's count beside its files' rows: both of a transaction, or neither."""

import pytest
from sqlalchemy import Engine, event, select

from service.database.engine import session_factory
from service.database.tables import Dataset, Import
from service.datasets.import_progress import ImportLost, ImportProgress
from service.datasets.imports import Transfer, new_import
from service.datasets.repository import create_dataset
from service.errors import FileOutcome

ACCEPTED = FileOutcome("a.png", "accepted", "itm_1")
REFUSED = FileOutcome("b.png", "rejected", code="image_damaged")


@pytest.fixture
def progress(engine: Engine) -> ImportProgress:
    with session_factory(engine).begin() as session:
        dataset = create_dataset(session, name="rings", task="segmentation", classes=None).id
        session.flush()
        session.add(new_import("imp_1", dataset, Transfer(None, "0" * 64, 0), 3, None))
    return ImportProgress(engine, "imp_1")


def read(engine: Engine) -> tuple[int, list[str]]:
    with session_factory(engine, writes=False)() as session:
        row = session.get_one(Import, "imp_1")
        return row.done, [outcome["file"] for outcome in row.outcomes]


def test_a_file_is_counted_with_its_row_and_not_a_second_time(
    engine: Engine, progress: ImportProgress
) -> None:
    with session_factory(engine).begin() as session:
        progress.journal(session, ACCEPTED)
    assert read(engine) == (1, [])
    statements: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *found: statements.append(found[2]))
    progress.add(ACCEPTED)
    assert statements == []
    assert progress.done == 1


def test_a_transaction_that_was_undone_counts_what_came_of_the_file_instead(
    engine: Engine, progress: ImportProgress
) -> None:
    with session_factory(engine)() as session:
        progress.journal(session, ACCEPTED)
        session.rollback()
    assert read(engine) == (0, [])
    progress.add(FileOutcome("a.png", "known", "itm_1"))
    assert read(engine) == (1, [])


def test_a_refused_file_is_written_at_the_latest_with_the_next_row(
    engine: Engine, progress: ImportProgress
) -> None:
    progress.add(REFUSED)
    assert read(engine) == (0, []), "its list is written whole, and so not for each"
    with session_factory(engine).begin() as session:
        progress.journal(session, ACCEPTED)
    assert read(engine) == (2, ["b.png"])
    progress.add(ACCEPTED)
    progress.end("succeeded_with_problems")
    assert read(engine) == (2, ["b.png"])


def test_a_lost_import_counts_nothing_and_says_so_before_the_row_is_kept(
    engine: Engine, progress: ImportProgress
) -> None:
    with session_factory(engine).begin() as session:
        session.get_one(Import, "imp_1").owner = "wrk_other"
    with session_factory(engine)() as session:
        create_dataset(session, name="undone", task="segmentation", classes=None)
        with pytest.raises(ImportLost):
            progress.journal(session, ACCEPTED)
    with session_factory(engine, writes=False)() as session:
        assert [dataset.name for dataset in session.scalars(select(Dataset))] == ["rings"]
    assert read(engine) == (0, [])
