import sqlite3
import threading
from datetime import UTC, datetime, timedelta, timezone

import pytest
from sqlalchemy import Engine, select, text
from sqlalchemy.exc import IntegrityError, StatementError

from service.database.engine import open_engine, session_factory
from service.database.tables import Dataset, Item
from service.settings import Settings


def _dataset(name: str, moment: datetime | None = None) -> Dataset:
    row = Dataset(id=f"ds_{name}", name=name, task="segmentation", classes=None)
    if moment is not None:
        row.created_at = moment
    return row


def test_times_come_back_aware_and_in_utc(engine: Engine) -> None:
    berlin = timezone(timedelta(hours=2))
    with session_factory(engine).begin() as session:
        session.add(_dataset("a", datetime(2025, 6, 1, 12, 30, tzinfo=berlin)))
    with session_factory(engine, writes=False)() as session:
        stored = session.scalars(select(Dataset.created_at)).one()
    assert stored == datetime(2025, 6, 1, 10, 30, tzinfo=UTC)
    assert stored.tzinfo is UTC


def test_a_naive_time_is_refused(engine: Engine) -> None:
    with (
        pytest.raises(StatementError, match="no time zone"),
        session_factory(engine).begin() as session,
    ):
        session.add(_dataset("a", datetime(2025, 6, 1)))  # noqa: DTZ001 - the point of the test.


def test_rows_that_point_nowhere_are_refused(engine: Engine) -> None:
    orphan = Item(
        id="itm_1",
        dataset_id="ds_none",
        name="a.png",
        key="a",
        sha256="0" * 64,
        byte_count=1,
        width=1,
        height=1,
        channels=1,
        bit_depth=8,
    )
    with pytest.raises(IntegrityError), session_factory(engine).begin() as session:
        session.add(orphan)


def test_writers_that_read_first_wait_for_each_other_instead_of_failing(engine: Engine) -> None:
    # Without BEGIN IMMEDIATE the second of two such transactions fails with "database is locked".
    writes = session_factory(engine)
    with writes.begin() as session:
        session.add(_dataset("counter"))
    failures: list[Exception] = []

    def count_up() -> None:
        try:
            for _ in range(20):
                with writes.begin() as session:
                    row = session.get_one(Dataset, "ds_counter")
                    row.classes = [*(row.classes or []), "x"]
        except Exception as error:  # noqa: BLE001 - the edge of a thread.
            failures.append(error)

    threads = [threading.Thread(target=count_up) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    with session_factory(engine, writes=False)() as session:
        assert len(session.get_one(Dataset, "ds_counter").classes or []) == 80


def test_a_reader_does_not_wait_for_a_writer(engine: Engine) -> None:
    with session_factory(engine).begin() as writing:
        writing.add(_dataset("a"))
        writing.flush()
        with session_factory(engine, writes=False)() as reading:
            assert reading.scalars(select(Dataset)).all() == []


def test_opening_a_new_database_waits_for_another_process_that_writes_to_it(
    settings: Settings,
) -> None:
    # Without the wait, opening fails at once with "database is locked", whatever the timeout is.
    opened = open_engine(settings)
    path = opened.url.database
    assert path is not None
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    release = threading.Timer(0.2, other.execute, ["ROLLBACK"])
    release.start()
    with opened.connect() as connection:
        assert connection.execute(text("PRAGMA journal_mode")).scalar_one() == "wal"
    release.join()
    other.close()
    opened.dispose()
