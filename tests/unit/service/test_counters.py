from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import Engine, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, sessionmaker

from service.database import migrate
from service.database.counters import CountingSession
from service.database.engine import open_engine, session_factory
from service.database.tables import Dataset, Item, Label
from service.datasets.repository import create_dataset, get_dataset
from service.ids import new_id
from service.settings import Settings


def _item(dataset_id: str, key: str) -> Item:
    return Item(
        id=new_id("itm"),
        dataset_id=dataset_id,
        name=f"{key}.png",
        key=key,
        sha256=key,
        byte_count=1,
        width=96,
        height=64,
        channels=1,
        bit_depth=8,
    )


def _label(dataset_id: str, key: str, classes: dict[str, int]) -> Label:
    return Label(
        id=new_id("lbl"),
        dataset_id=dataset_id,
        name=f"{key}.json",
        key=key,
        kind="labelme",
        sha256=key,
        width=96,
        height=64,
        classes=classes,
        content="{}",
    )


def _kept(session: Session, dataset_id: str) -> Any:
    row = session.get_one(Dataset, dataset_id)
    labelled = {item.key for item in _rows(session, Item, dataset_id) if item.labelled}
    waiting = {label.key for label in _rows(session, Label, dataset_id) if label.waiting}
    counters = (row.item_count, row.labelled_count, row.label_count, row.class_counts)
    return counters, labelled, waiting


def _counted(session: Session, dataset_id: str) -> Any:
    """The same, counted from the rows alone."""
    items = {item.key for item in _rows(session, Item, dataset_id)}
    labels = {label.key: label.classes for label in _rows(session, Label, dataset_id)}
    carried = Counter(name for classes in labels.values() for name in classes if classes[name])
    paired = items & labels.keys()
    return (len(items), len(paired), len(labels), dict(carried)), paired, labels.keys() - items


def _rows(session: Session, entity: Any, dataset_id: str) -> Any:
    return session.scalars(select(entity).where(entity.dataset_id == dataset_id))


KEYS = st.sampled_from("abcd")
# Each inner list is one transaction; True at its end undoes it.
STEPS = st.lists(
    st.tuples(
        st.lists(st.tuples(st.sampled_from(["frame", "label"]), KEYS), max_size=6), st.booleans()
    ),
    max_size=8,
)


@hypothesis_settings(deadline=None, max_examples=60)
@given(steps=STEPS)
def test_counters_are_those_of_the_rows_whatever_comes_and_goes(
    shared_engine: Engine, steps: list[tuple[list[tuple[str, str]], bool]]
) -> None:
    writes = session_factory(shared_engine)
    with writes.begin() as session:
        first = create_dataset(session, name=new_id("ds"), task="segmentation", classes=None).id
        other = create_dataset(session, name=new_id("ds"), task="segmentation", classes=None).id
        session.add_all([_item(other, "a"), _label(other, "b", {"pit": 1})])
    for step, undone in steps:
        with writes() as session:
            for kind, key in step:
                _turn(session, first, kind, key)
            session.rollback() if undone else session.commit()
    with session_factory(shared_engine, writes=False)() as session:
        assert _kept(session, first) == _counted(session, first)
        assert _kept(session, other) == ((1, 0, 1, {"pit": 1}), set(), {"b"})


def _turn(session: Session, dataset_id: str, kind: str, key: str) -> None:
    """Delete the row if it is there, insert it if it is not."""
    entity: Any = Item if kind == "frame" else Label
    row = session.scalar(select(entity).filter_by(dataset_id=dataset_id, key=key))
    if row is not None:
        session.delete(row)
    elif kind == "frame":
        session.add(_item(dataset_id, key))
    else:
        session.add(_label(dataset_id, key, {"scratch": ord(key) % 2, "pit": 1}))


@pytest.fixture(scope="module")
def shared_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """One database for all examples: each takes data sets of its own."""
    engine = open_engine(Settings(storage_dir=tmp_path_factory.mktemp("storage")))
    migrate.upgrade(engine)
    yield engine
    engine.dispose()


def test_a_data_set_and_its_first_frames_may_be_written_at_once(engine: Engine) -> None:
    with session_factory(engine).begin() as session:
        session.add(Dataset(id="ds_1", name="rings", task="segmentation"))
        session.add_all([_item("ds_1", "a"), _label("ds_1", "a", {"pit": 2}), _item("ds_1", "b")])
    with session_factory(engine, writes=False)() as session:
        assert _kept(session, "ds_1") == ((2, 1, 1, {"pit": 1}), {"a"}, set())


def test_more_rows_than_one_statement_takes_are_counted(engine: Engine) -> None:
    with session_factory(engine).begin() as session:
        session.add(Dataset(id="ds_1", name="rings", task="segmentation"))
        session.add_all(_item("ds_1", f"{number:04}") for number in range(2500))
    with session_factory(engine).begin() as session:
        session.add_all(_label("ds_1", f"{number:04}", {"pit": 1}) for number in range(2400))
    with session_factory(engine, writes=False)() as session:
        row = get_dataset(session, "ds_1")
        assert (row.item_count, row.labelled_count) == (2500, 2400)
        assert _kept(session, "ds_1") == _counted(session, "ds_1")


def test_rows_of_no_data_set_are_refused(engine: Engine) -> None:
    with pytest.raises(IntegrityError), session_factory(engine).begin() as session:
        session.add(_item("ds_none", "a"))


def test_every_writing_session_counts(engine: Engine) -> None:
    writes: sessionmaker[Session] = session_factory(engine)
    assert isinstance(writes(), CountingSession)
