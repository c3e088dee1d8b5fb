"""What a page costs in the database: told from SQLite's own plans and from counting statements."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Connection, Engine, event

from service.database.engine import session_factory
from service.database.tables import Dataset, Item, Label
from service.datasets.repository import find_item, find_item_by_content, find_label
from service.ids import new_id

Statement = tuple[str, Any]
FRAMES = 300


@pytest.fixture
def database(client: TestClient) -> Engine:
    engine: Engine = client.app.state.engine  # type: ignore[attr-defined]  # Starlette's own.
    return engine


@pytest.fixture
def dataset(database: Engine) -> str:
    """A data set in which every third frame has no label and every third label no frame."""
    with session_factory(database).begin() as session:
        session.add(Dataset(id="ds_1", name="rings", task="segmentation", classes=["pit"]))
        for number in range(FRAMES):
            key = f"part_{number:04}"
            size = {"width": 96, "height": 64, "sha256": f"{number:064}"}
            if number % 3 != 1:
                file = {"name": f"{key}.png", "byte_count": 1, "channels": 1, "bit_depth": 8}
                session.add(Item(id=new_id("itm"), dataset_id="ds_1", key=key, **file, **size))
            if number % 3 != 2:
                file = {"name": f"{key}.json", "kind": "labelme", "classes": {}}
                content = '{"kind":"good"}'
                row = Label(dataset_id="ds_1", key=key, content=content, **file, **size)
                row.id = new_id("lbl")
                session.add(row)
    return "ds_1"


@contextmanager
def recorded(engine: Engine) -> Iterator[list[Statement]]:
    """Collect each statement that reaches the database, with its parameters."""
    statements: list[Statement] = []

    def note(_c: Any, _cursor: Any, statement: str, parameters: Any, *_rest: Any) -> None:
        if not statement.startswith(("BEGIN", "EXPLAIN")):
            statements.append((statement, parameters))

    event.listen(engine, "before_cursor_execute", note)
    yield statements
    event.remove(engine, "before_cursor_execute", note)


def plan(connection: Connection, statement: Statement) -> list[str]:
    rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement[0]}", statement[1])
    return [row[3] for row in rows]


def assert_indexed(engine: Engine, statements: list[Statement]) -> None:
    """No statement reads a whole table of frames, labels or versions, and none sorts rows."""
    assert statements
    with engine.connect() as connection:
        for statement in statements:
            for step in plan(connection, statement):
                words = step.split()
                scanned = words[1] if words[0] == "SCAN" else None
                assert scanned not in {"items", "labels", "versions"}, (step, statement[0])
                assert "TEMP B-TREE" not in step, (step, statement[0])


PAGES = (
    "/datasets",
    "/datasets/ds_1",
    "/datasets/ds_1/items",
    "/datasets/ds_1/items?labelled=true",
    "/datasets/ds_1/items?labelled=false",
    "/datasets/ds_1/labels",
    "/datasets/ds_1/labels?waiting=true",
    "/datasets/ds_1/versions",
)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_read_through_an_index_and_not_sorted(
    client: TestClient, database: Engine, dataset: str, page: str
) -> None:
    with recorded(database) as statements:
        answer = client.get(page, params={"limit": 20} if page != "/datasets/ds_1" else None)
        following = answer.json().get("next_cursor")
        if following is not None:
            client.get(page, params={"limit": 20, "cursor": following})
    assert answer.status_code == 200
    assert_indexed(database, statements)


@pytest.mark.parametrize(
    ("listed", "search"),
    [
        ("items?", "(dataset_id=? AND key>?)"),
        ("items?labelled=true", "(dataset_id=? AND labelled=? AND key>?)"),
        ("items?labelled=false", "(dataset_id=? AND labelled=? AND key>?)"),
        ("labels?waiting=true", "(dataset_id=? AND waiting=? AND key>?)"),
    ],
)
def test_a_page_is_reached_by_its_cursor_and_not_by_counting_to_it(
    client: TestClient, database: Engine, dataset: str, listed: str, search: str
) -> None:
    path = f"/datasets/ds_1/{listed}&limit=40"
    cursor = client.get(path).json()["next_cursor"]
    with recorded(database) as statements:
        client.get(f"{path}&cursor={cursor}")
    with database.connect() as connection:
        steps = [step for statement in statements for step in plan(connection, statement)]
    assert any(search in step for step in steps), steps


@pytest.mark.parametrize("page", PAGES)
def test_a_page_costs_as_many_statements_however_long_it_is(
    client: TestClient, database: Engine, dataset: str, page: str
) -> None:
    for number in range(30):
        body = {"name": f"other {number}", "task": "segmentation"}
        assert client.post("/datasets", json=body).status_code == 201

    def cost(limit: int) -> int:
        with recorded(database) as statements:
            answer = client.get(page, params={"limit": limit} if page != "/datasets/ds_1" else None)
        assert answer.status_code == 200
        return len(statements)

    assert cost(2) == cost(25) <= 4


@pytest.mark.parametrize("find", [find_item, find_item_by_content, find_label])
def test_what_an_upload_looks_up_is_found_through_an_index(
    database: Engine, dataset: str, find: Callable[..., object]
) -> None:
    with session_factory(database, writes=False)() as session, recorded(database) as statements:
        find(session, dataset, "part_0001")
    assert_indexed(database, statements)


def test_an_upload_costs_as_many_statements_in_a_large_data_set_as_in_an_empty_one(
    client: TestClient, database: Engine, dataset: str, pictures: Any
) -> None:
    empty = client.post("/datasets", json={"name": "empty", "task": "segmentation"}).json()["id"]

    def upload(into: str) -> list[Statement]:
        files = [("x.png", pictures.frame(1)), ("x.json", pictures.labelme("x.png", label="pit"))]
        with recorded(database) as statements:
            parts = [("files", file) for file in files]
            assert client.post(f"/datasets/{into}/images", files=parts).status_code == 201
        return statements

    into_empty, into_large = upload(empty), upload(dataset)
    assert len(into_large) == len(into_empty)
    assert_indexed(database, into_large)
