"""A change of an entry shows."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.ledger.chain import Entry, LedgerBroken, Link, encode, link_of, seal, verified

_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    # Lone surrogates have no spelling in UTF-8, and no JSON body can hold them.
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab"), inner, max_size=3),
    max_leaves=5,
)
_BODIES = st.dictionaries(st.sampled_from(["verdict", "at", "kind", "défaut"]), _VALUES)


def _chain(bodies: list[Entry]) -> list[Entry]:
    entries: list[Entry] = []
    last = Link()
    for body in bodies:
        entries.append(seal(body, last))
        last = link_of(entries[-1])
    return entries


def _read(lines: list[bytes]) -> list[Entry]:
    return list(verified(lines, Link(), "a.jsonl"))


@given(st.lists(_BODIES, max_size=6))
def test_what_was_sealed_is_read_back_as_it_was(bodies: list[Entry]) -> None:
    entries = _chain(bodies)

    assert _read([encode(entry) for entry in entries]) == json.loads(json.dumps(entries))
    assert [entry["sequence"] for entry in entries] == list(range(1, len(entries) + 1))


@given(st.lists(_BODIES, min_size=1, max_size=4), st.data())
def test_any_byte_that_is_changed_is_noticed_in_its_line(
    bodies: list[Entry], data: st.DataObject
) -> None:
    lines = [encode(entry) for entry in _chain(bodies)]
    line = data.draw(st.integers(0, len(lines) - 1))
    place = data.draw(st.integers(0, len(lines[line]) - 2))
    value = data.draw(st.integers(0, 255).filter(lambda byte: byte != lines[line][place]))
    lines[line] = lines[line][:place] + bytes([value]) + lines[line][place + 1 :]

    with pytest.raises(LedgerBroken) as error:
        _read(lines)

    assert error.value.where == f"line {line + 1}"


@pytest.mark.parametrize(
    ("change", "line", "says"),
    [
        (lambda lines: lines[:1] + lines[2:], 2, "entry 2 is missing, 3 is in its place"),
        (lambda lines: [lines[1], lines[0], lines[2]], 1, "entry 1 is missing"),
        (lambda lines: [lines[0], *lines], 2, "entry 2 is missing, 1 is in its place"),
    ],
    ids=["dropped", "moved", "doubled"],
)
def test_an_entry_that_is_dropped_moved_or_doubled_is_noticed(
    change: Any, line: int, says: str
) -> None:
    lines = [encode(entry) for entry in _chain([{"verdict": v} for v in ("OK", "NG", "OK")])]

    with pytest.raises(LedgerBroken, match=says) as error:
        _read(change(lines))

    assert (error.value.file, error.value.where) == ("a.jsonl", f"line {line}")


def test_an_entry_written_anew_with_a_right_hash_breaks_the_next_one() -> None:
    first, second = _chain([{"verdict": "NG"}, {"verdict": "OK"}])
    forged = seal({"verdict": "OK"}, Link())
    assert forged["hash"] != first["hash"]

    with pytest.raises(LedgerBroken, match="entry 2 does not follow the one before it"):
        _read([encode(forged), encode(second)])


@pytest.mark.parametrize(
    "line",
    [b"", b"[]\n", b"{}\n", b"[" * 100_000 + b"\n", b'{"sequence": true}\n', b"\xff\n"],
    ids=["empty", "list", "object", "deep", "wrong type", "no UTF-8"],
)
def test_what_is_no_entry_is_named(line: bytes) -> None:
    with pytest.raises(LedgerBroken):
        _read([line])


def test_the_keys_of_the_chain_are_its_own() -> None:
    with pytest.raises(ValueError, match="hash"):
        seal({"hash": "0"}, Link())
