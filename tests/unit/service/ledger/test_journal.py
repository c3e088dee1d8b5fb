"""The ledger survives kills, torn lines and its own retention, and no change goes unseen."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from service.errors import StorageError
from service.ledger.chain import LedgerBroken
from service.ledger.journal import (
    TORN,
    Ledger,
    Retention,
    entries_after,
    ledger_files,
    verified_entries,
)


@contextmanager
def _opened(directory: Path, retention: Retention | None = None) -> Iterator[Ledger]:
    ledger = Ledger(directory, retention)
    try:
        yield ledger
    finally:
        ledger.close()


def _fill(directory: Path, count: int, retention: Retention | None = None) -> None:
    with _opened(directory, retention) as ledger:
        for number in range(count):
            ledger.append({"kind": "prediction", "number": number, "padding": "x" * 50})


def test_entries_of_many_threads_and_lives_are_one_chain(tmp_path: Path) -> None:
    for _ in range(2):
        with _opened(tmp_path) as ledger:
            threads = [
                threading.Thread(target=lambda: [ledger.append({"n": n}) for n in range(50)])
                for _ in range(4)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

    entries = list(verified_entries(tmp_path))
    assert [entry["sequence"] for entry in entries] == list(range(1, 401))


def test_a_killed_process_loses_no_entry_it_was_told_of(tmp_path: Path) -> None:
    program = textwrap.dedent(
        f"""
        from pathlib import Path
        from service.ledger.journal import Ledger, Retention
        ledger = Ledger(Path({str(tmp_path)!r}), Retention(file_bytes=4000))
        while True:
            print(ledger.append({{"kind": "prediction"}})["hash"], flush=True)
        """
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        told = [process.stdout.readline().strip() for _ in range(200)]
        process.send_signal(signal.SIGKILL)
        told += process.stdout.read().split("\n")[:-1]

    with _opened(tmp_path) as ledger:
        ledger.append({"kind": "prediction"})

    hashes = [entry["hash"] for entry in verified_entries(tmp_path)]
    assert hashes[: len(told)] == told
    assert len(ledger_files(tmp_path)) > 1


def test_half_a_line_of_a_power_cut_is_set_aside_and_told(tmp_path: Path) -> None:
    _fill(tmp_path, 3)
    newest = ledger_files(tmp_path)[-1]
    with newest.open("ab") as file:
        file.write(b'{"at":"2026-')

    assert len(list(verified_entries(tmp_path))) == 3
    _fill(tmp_path, 1)

    *_, told, last = verified_entries(tmp_path)
    assert (told["kind"], told["reason"], told["bytes"]) == ("recovered", TORN, 12)
    assert (tmp_path / told["set_aside"]).read_bytes() == b'{"at":"2026-'
    assert last["number"] == 0


def test_a_changed_newest_file_stops_no_line_and_is_told(tmp_path: Path) -> None:
    _fill(tmp_path, 5)
    newest = ledger_files(tmp_path)[-1]
    changed = newest.read_bytes().replace(b'"number":2', b'"number":9')
    newest.write_bytes(changed)

    with pytest.raises(LedgerBroken, match="entry 3 was changed"):
        list(verified_entries(tmp_path))
    _fill(tmp_path, 1)

    entries = list(verified_entries(tmp_path))
    assert entries[2]["kind"] == "recovered"
    assert entries[2]["reason"] == "line 3: entry 3 was changed after it was written"
    # Nothing of the evidence is lost.
    assert changed.endswith((tmp_path / entries[2]["set_aside"]).read_bytes())


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    with _opened(tmp_path), pytest.raises(StorageError) as error:
        Ledger(tmp_path)
    assert error.value.code == "ledger_in_use"


def test_old_files_go_when_they_are_too_many_and_the_chain_knows(tmp_path: Path) -> None:
    retention = Retention(file_bytes=2000, max_bytes=8000)
    _fill(tmp_path, 200, retention)

    files = ledger_files(tmp_path)
    assert sum(path.stat().st_size for path in files) <= 8000 + 2 * 2000
    entries = list(verified_entries(tmp_path))
    assert entries[0]["sequence"] > 1
    retired = [entry for entry in entries if entry.get("kind") == "retired"]
    assert retired[-1]["kept_from"] == entries[0]["sequence"]
    assert retired[-1]["kept_from_previous"] == entries[0]["previous"]


def test_old_files_go_when_they_are_too_old(tmp_path: Path) -> None:
    _fill(tmp_path, 30, Retention(file_bytes=2000))
    before = ledger_files(tmp_path)
    past = (datetime.now(UTC) - timedelta(days=40)).timestamp()
    for path in before[:2]:
        os.utime(path, (past, past))

    _fill(tmp_path, 30, Retention(file_bytes=2000, max_age=timedelta(days=30)))

    assert not before[0].exists()
    assert not before[1].exists()
    assert before[2].exists()
    assert next(verified_entries(tmp_path))["sequence"] == int(before[2].stem)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda files: files[0].unlink(), "ledger_cut"),
        (lambda files: files[1].unlink(), "ledger_broken"),
    ],
    ids=["the first", "one in the middle"],
)
def test_a_file_that_is_missing_is_noticed(
    tmp_path: Path, change: Callable[[list[Path]], None], code: str
) -> None:
    _fill(tmp_path, 60, Retention(file_bytes=2000))
    change(ledger_files(tmp_path))

    with pytest.raises(LedgerBroken) as error:
        list(verified_entries(tmp_path))
    assert error.value.code == code


def test_entries_are_found_by_their_sequence_across_files(tmp_path: Path) -> None:
    _fill(tmp_path, 60, Retention(file_bytes=2000))
    whole = list(verified_entries(tmp_path))

    assert len(ledger_files(tmp_path)) > 3
    assert entries_after(tmp_path, 0, 1000) == whole
    assert entries_after(tmp_path, 17, 25) == whole[17:42]
    assert entries_after(tmp_path, 60, 25) == []
    assert entries_after(tmp_path / "nothing", 0, 25) == []


def test_a_full_disk_is_named_and_leaves_the_ledger_whole(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with _opened(tmp_path) as ledger:
        ledger.append({"number": 1})
        real, ledger._file = ledger._file, Path("/dev/full").open("r+b", buffering=0)  # noqa: SIM115 - it stands in for a full disk.
        with pytest.raises(StorageError) as error:
            ledger.append({"number": 2})
        ledger._file.close()
        ledger._file = real
        ledger.append({"number": 3})

    assert error.value.code == "ledger_not_written"
    assert [entry["number"] for entry in verified_entries(tmp_path)] == [1, 3]
