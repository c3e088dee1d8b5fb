"""Keyset paging: a cursor names the last row seen, so pages stay true while rows come and go."""

import base64
import json
from datetime import datetime
from typing import Annotated, Any, Generic, TypeVar

from fastapi import Query
from pydantic import BaseModel
from sqlalchemy import Select, literal, tuple_
from sqlalchemy.orm import InstrumentedAttribute, Session

from service.database.tables import UtcDateTime
from service.errors import InvalidRequest

T = TypeVar("T")

MAX_PAGE = 500
# A database's integer has 64 bits.
_LARGEST_INTEGER = 2**63

Limit = Annotated[int, Query(ge=1, le=MAX_PAGE, description="Rows a page.")]
Cursor = Annotated[str | None, Query(description="`next_cursor` of the page before.")]


class Page(BaseModel, Generic[T]):
    """One page of a list; ``next_cursor`` is null on the last one."""

    items: list[T]
    next_cursor: str | None = None


def fetch_page(
    session: Session,
    statement: Select[T],
    *,
    order: tuple[InstrumentedAttribute[Any], ...],
    limit: int,
    cursor: str | None,
    descending: bool = False,
) -> tuple[list[T], str | None]:
    """Return one page of ``statement``'s rows and the cursor of the next page.

    Args:
        session: Any session.
        statement: Selects one entity, unordered.
        order: The entity's columns to order by; together they are unique.
        limit: Most rows to return.
        cursor: What the page before returned, None for the first page.
        descending: Largest first.

    Raises:
        InvalidRequest: The cursor is not one of this list.
    """
    if cursor is not None:
        values = [
            literal(value, column.type)
            for value, column in zip(decode_cursor(cursor, order), order, strict=True)
        ]
        row, last = tuple_(*order), tuple_(*values)
        statement = statement.where(row < last if descending else row > last)
    ordering = [column.desc() if descending else column.asc() for column in order]
    # One row more than asked tells whether there is a next page.
    rows = list(session.scalars(statement.order_by(*ordering).limit(limit + 1)))
    if len(rows) <= limit:
        return rows, None
    page = rows[:limit]
    return page, encode_cursor([getattr(page[-1], column.key) for column in order])


def encode_cursor(values: list[Any]) -> str:
    """Return the values as an opaque URL-safe string."""
    plain = [value.isoformat() if isinstance(value, datetime) else value for value in values]
    return base64.urlsafe_b64encode(json.dumps(plain).encode()).decode().rstrip("=")


def decode_cursor(cursor: str, order: tuple[InstrumentedAttribute[Any], ...]) -> list[Any]:
    """Return the values behind `encode_cursor`, checked against the columns they are for.

    Raises:
        InvalidRequest: The string is no cursor, or one of another list.
    """
    try:
        return _values(cursor, order)
    except ValueError as error:
        raise InvalidRequest(
            "bad_cursor",
            f"{cursor!r} is no cursor of this list",
            where="query/cursor",
            hint="Pass next_cursor of the page before, or nothing for the first page.",
        ) from error


def _values(cursor: str, order: tuple[InstrumentedAttribute[Any], ...]) -> list[Any]:
    padded = cursor + "=" * (-len(cursor) % 4)
    # binascii.Error, JSONDecodeError and UnicodeError are all ValueErrors.
    values = json.loads(base64.b64decode(padded.encode("ascii"), altchars=b"-_", validate=True))
    if not isinstance(values, list):
        raise ValueError(cursor)  # noqa: TRY004 - one error class for every malformed cursor.
    return [_typed(value, column) for value, column in zip(values, order, strict=True)]


def _typed(value: Any, column: InstrumentedAttribute[Any]) -> Any:
    kind = datetime if isinstance(column.type, UtcDateTime) else column.type.python_type
    if kind is datetime and isinstance(value, str):
        moment = datetime.fromisoformat(value)
        if moment.tzinfo is None:
            raise ValueError(value)
        return moment
    is_storable = not isinstance(value, int) or abs(value) < _LARGEST_INTEGER
    if not isinstance(value, kind) or not is_storable:
        raise ValueError(value)
    return value
