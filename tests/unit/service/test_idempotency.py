from itertools import count

import pytest
from sqlalchemy import Engine, func, select

from service.api.idempotency import create_once, record, replay
from service.database.engine import session_factory
from service.database.tables import Dataset
from service.datasets.repository import create_dataset
from service.errors import Conflict

REQUEST = {"name": "rings"}
OPERATION = "POST /datasets"


def test_without_a_key_every_request_creates(engine: Engine) -> None:
    numbers = count(1)
    with session_factory(engine).begin() as session:
        answers = [
            create_once(
                session,
                None,
                operation=OPERATION,
                request=REQUEST,
                create=lambda: (201, {"number": next(numbers)}),
            )
            for _ in range(2)
        ]
    assert answers == [(201, {"number": 1}), (201, {"number": 2})]


def test_what_was_created_beside_a_twins_record_is_undone(engine: Engine) -> None:
    writes = session_factory(engine)
    with writes.begin() as session:
        record(session, "k", operation=OPERATION, request=REQUEST, status=201, body={"id": "a"})

    # As a database with overlapping writers shows it: the twin's record appears after the look.
    def create_late() -> None:
        with writes.begin() as session:
            create_dataset(session, name="rings", task="segmentation", classes=None)
            record(session, "k", operation=OPERATION, request=REQUEST, status=201, body={"id": "b"})

    with pytest.raises(Conflict) as caught:
        create_late()
    assert caught.value.code == "idempotency_key_in_use"
    with writes() as session:
        assert session.scalar(select(func.count()).select_from(Dataset)) == 0
        answer = replay(session, "k", operation=OPERATION, request=REQUEST)
    assert answer == (201, {"id": "a"})


def test_a_key_is_bound_to_the_call_too(engine: Engine) -> None:
    with session_factory(engine).begin() as session:
        record(session, "k", operation=OPERATION, request=REQUEST, status=201, body={})
        with pytest.raises(Conflict):
            replay(session, "k", operation="POST /jobs", request=REQUEST)
