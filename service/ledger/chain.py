"""The chain of hashes that makes a change of a ledger show.

Each entry holds the hash of the entry before it and the hash of itself, that one included. Who
changes, drops or moves an entry breaks the chain at that place. Who can write all of the files can
write all of them anew: what shows that is the newest hash kept somewhere else, see
``hairline ledger verify --head``.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from service.errors import StorageError

Entry = dict[str, Any]

# What the first entry of all names as the one before it.
GENESIS = "0" * 64


class LedgerBroken(StorageError):  # noqa: N818 - the name says what is the case, as in errors.py.
    """A ledger is not as it was written."""


@dataclass(frozen=True)
class Link:
    """An entry's place in the chain.

    Attributes:
        sequence: 1 for the first entry of all; 0 for none yet.
        hash: Of the entry.
    """

    sequence: int = 0
    hash: str = GENESIS


def seal(body: Entry, last: Link) -> Entry:
    """Return an entry for ``body`` that follows ``last``.

    Raises:
        ValueError: The body names a key of the chain, or holds a number that JSON has none for.
    """
    if taken := sorted({"sequence", "previous", "hash"} & body.keys()):
        raise ValueError(f"{', '.join(taken)}: the chain's own")
    entry = {"sequence": last.sequence + 1, **body, "previous": last.hash}
    return {**entry, "hash": _digest(entry)}


def encode(entry: Entry) -> bytes:
    """Return an entry as the one line of JSON that is its only spelling."""
    text = json.dumps(
        entry, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode() + b"\n"


def link_of(entry: Entry) -> Link:
    """Return an entry's place."""
    return Link(entry["sequence"], entry["hash"])


def verified(lines: Iterable[bytes], last: Link, file: str) -> Iterator[Entry]:
    """Yield the entries of a file's lines, each after it was proven to follow the one before.

    Raises:
        LedgerBroken: One does not; file and line are named.
    """
    for number, line in enumerate(lines, start=1):
        entry = _parsed(line, file, number)
        if entry["sequence"] != last.sequence + 1:
            raise _broken(
                file,
                number,
                f"entry {last.sequence + 1} is missing, {entry['sequence']} is in its place",
            )
        if entry["previous"] != last.hash:
            raise _broken(
                file, number, f"entry {entry['sequence']} does not follow the one before it"
            )
        last = link_of(entry)
        yield entry


def _parsed(line: bytes, file: str, number: int) -> Entry:
    """Return the entry of one line if it is spelled and hashed as it was written."""
    entry: Any
    try:
        entry = json.loads(line)
        expected = {"sequence": int, "previous": str, "hash": str}
        well_formed = isinstance(entry, dict) and all(
            type(entry.get(name)) is kind for name, kind in expected.items()
        )
    except (ValueError, RecursionError) as error:
        raise _broken(file, number, f"this is no JSON: {error}") from error
    if not well_formed:
        raise _broken(file, number, "this is no entry of a ledger")
    body = {name: value for name, value in entry.items() if name != "hash"}
    try:
        is_intact = encode(entry) == line and _digest(body) == entry["hash"]
    except (ValueError, UnicodeError):
        is_intact = False
    if not is_intact:
        raise _broken(file, number, f"entry {entry['sequence']} was changed after it was written")
    intact: Entry = entry
    return intact


def _digest(body: Entry) -> str:
    return hashlib.sha256(encode(body)).hexdigest()


def _broken(file: str, number: int, detail: str) -> LedgerBroken:
    return LedgerBroken(
        "ledger_broken",
        detail,
        file=file,
        where=f"line {number}",
        hint="compare the file with a backup; entries before this line are as they were written",
    )
