"""``Idempotency-Key``: a creating request sent twice creates once and is answered twice.

The record is written in the transaction that creates the resource, so there is no state in which
one exists without the other, and two twins at once are told apart by the primary key.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Annotated, Any

from fastapi import Header
from sqlalchemy import delete
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from service.database.tables import IdempotencyRecord, now_utc
from service.errors import Conflict

# Long enough for a client that was switched off over a weekend.
KEPT_FOR = timedelta(days=7)

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=200,
        description="Send the same key again to get the first answer instead of a second resource.",
    ),
]


def create_once(
    session: Session,
    key: str | None,
    *,
    operation: str,
    request: Mapping[str, Any],
    create: Callable[[], tuple[int, dict[str, Any]]],
) -> tuple[int, dict[str, Any]]:
    """Return ``create``'s status and body, or those it once returned under the same key.

    Args:
        session: A writing session; ``create`` writes through it.
        key: The request's ``Idempotency-Key``; None calls ``create`` without a record.
        operation: Method and path, e.g. ``POST /jobs``.
        request: The request's body, JSON-ready.
        create: Creates the resource and returns a status and a JSON-ready body.

    Raises:
        Conflict: The key was used for another request.
    """
    if key is None:
        return create()
    replayed = replay(session, key, operation=operation, request=request)
    if replayed is not None:
        return replayed
    status, body = create()
    record(session, key, operation=operation, request=request, status=status, body=body)
    return status, body


def replay(
    session: Session, key: str, *, operation: str, request: Mapping[str, Any]
) -> tuple[int, dict[str, Any]] | None:
    """Return the answer recorded under ``key``, None if there is none.

    Raises:
        Conflict: The key was used for another request.
    """
    found = session.get(IdempotencyRecord, key)
    if found is None or found.status is None or found.body is None:
        return None
    if found.request_sha256 != _fingerprint(operation, request):
        raise Conflict(
            "idempotency_key_reused",
            f"Idempotency-Key {key!r} was used for another request",
            where="header/Idempotency-Key",
            hint="Use a new key for each new request; repeat a key only with the same body.",
        )
    return found.status, found.body


def record(
    session: Session,
    key: str,
    *,
    operation: str,
    request: Mapping[str, Any],
    status: int,
    body: dict[str, Any],
) -> None:
    """Keep the answer under ``key`` and forget those older than `KEPT_FOR`.

    Raises:
        Conflict: A twin recorded its answer first.
    """
    session.execute(
        delete(IdempotencyRecord).where(IdempotencyRecord.created_at < now_utc() - KEPT_FOR)
    )
    row = IdempotencyRecord(
        key=key, request_sha256=_fingerprint(operation, request), status=status, body=body
    )
    try:
        with session.begin_nested():
            session.add(row)
    except IntegrityError as error:
        # Only a database whose writers overlap comes here.  Raising undoes what was created.
        raise Conflict(
            "idempotency_key_in_use",
            f"another request under Idempotency-Key {key!r} was answered at the same time",
            where="header/Idempotency-Key",
            hint="Send the request again; it gets that answer.",
        ) from error


def _fingerprint(operation: str, request: Mapping[str, Any]) -> str:
    text = json.dumps([operation, request], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
