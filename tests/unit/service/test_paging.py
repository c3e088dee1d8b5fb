import base64
import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, select

from service.api.paging import decode_cursor, encode_cursor, fetch_page
from service.database.engine import session_factory
from service.database.tables import Dataset
from service.errors import InvalidRequest

ORDER = (Dataset.created_at, Dataset.id)


@given(moment=st.datetimes(timezones=st.just(UTC)), name=st.text(max_size=30))
def test_a_cursor_gives_back_what_it_was_made_of(moment: datetime, name: str) -> None:
    assert decode_cursor(encode_cursor([moment, name]), ORDER) == [moment, name]


@given(st.text(max_size=40))
def test_any_other_string_is_refused_with_its_place(cursor: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        decode_cursor(cursor, ORDER)
    assert caught.value.where == "query/cursor"


@pytest.mark.parametrize("values", [[], ["x"], [1, "x"], ["2025-01-01T00:00:00", "x"], {"a": 1}])
def test_a_cursor_of_another_list_is_refused(values: object) -> None:
    cursor = base64.urlsafe_b64encode(json.dumps(values).encode()).decode()
    with pytest.raises(InvalidRequest):
        decode_cursor(cursor, ORDER)


@pytest.mark.parametrize("descending", [True, False])
def test_pages_follow_each_other_without_gap_or_overlap(engine: Engine, descending: bool) -> None:
    start = datetime(2025, 1, 1, tzinfo=UTC)
    writes = session_factory(engine)
    with writes.begin() as session:
        for number in range(7):
            # Pairs share a time, so that the identifier has to break the tie.
            moment = start + timedelta(seconds=number // 2)
            name = f"ds_{number}"
            session.add(Dataset(id=name, name=name, task="segmentation", created_at=moment))
    seen: list[str] = []
    cursor = None
    with writes() as session:
        for _ in range(4):
            rows, cursor = fetch_page(
                session,
                select(Dataset),
                order=ORDER,
                limit=2,
                cursor=cursor,
                descending=descending,
            )
            seen += [row.id for row in rows]
    assert cursor is None
    assert seen == sorted((f"ds_{number}" for number in range(7)), reverse=descending)
