"""A run's events are read once each, in order, whatever the moment of reading and of dying."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.jobs.events import EVENTS_FILE, Event, EventReader, RunView, fold

KINDS = ("started", "stage", "progress", "metrics", "heartbeat", "warning", "checkpoint", "failed")

DATA: dict[str, dict[str, Any]] = {
    "started": {"pid": 7, "resumed_from_step": None},
    "stage": {"stage": "running"},
    "progress": {"step": 3, "steps_total": 12, "epoch": 1, "epochs_total": 4, "eta_s": 2.5},
    "metrics": {"step": 3, "epoch": 1, "values": {"loss": 0.5}},
    "warning": {"code": "small_set", "detail": "only 3 defective frames"},
    "checkpoint": {"step": 3},
    "failed": {"code": "out_of_memory", "detail": "no memory", "hint": "use crops"},
}


def line(seq: int, kind: str) -> bytes:
    event = {"seq": seq, "time": "2026-01-05T08:00:00Z", "kind": kind, **DATA.get(kind, {})}
    return json.dumps(event).encode() + b"\n"


kinds = st.lists(st.sampled_from(KINDS), max_size=20)


@given(kinds=kinds, cuts=st.lists(st.integers(0, 3000), max_size=8))
def test_a_file_that_grows_in_any_pieces_is_read_like_the_whole_file(
    tmp_path_factory: pytest.TempPathFactory, kinds: list[str], cuts: list[int]
) -> None:
    run_dir = tmp_path_factory.mktemp("run")
    content = b"".join(line(seq, kind) for seq, kind in enumerate(kinds, 1))
    reader, view, events = EventReader(run_dir), RunView(), list[Event]()
    for cut in [*sorted(cut for cut in cuts if cut < len(content)), len(content)]:
        (run_dir / EVENTS_FILE).write_bytes(content[:cut])
        batch = reader.read()
        events += batch
        view = fold(view, batch)
    assert [event.seq for event in events] == list(range(1, len(kinds) + 1))
    assert view == fold(RunView(), EventReader(run_dir).read_all())


def test_a_torn_last_line_is_not_an_event_and_its_replacement_is(tmp_path: Path) -> None:
    path = tmp_path / EVENTS_FILE
    path.write_bytes(line(1, "started") + line(2, "progress")[:20])
    reader = EventReader(tmp_path)
    assert [event.kind for event in reader.read()] == ["started"]
    assert reader.read() == []
    path.write_bytes(line(1, "started") + line(2, "checkpoint"))
    assert [event.kind for event in reader.read()] == ["checkpoint"]


def test_a_damaged_line_is_logged_with_its_place_and_the_rest_is_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = line(1, "started")
    (tmp_path / EVENTS_FILE).write_bytes(first + b"\0\0\0\n" + b"[]\n" + line(2, "checkpoint"))
    assert [event.seq for event in EventReader(tmp_path).read_all()] == [1, 2]
    assert f"byte {len(first)}" in caplog.text


def test_a_run_that_has_written_nothing_yet_has_no_events(tmp_path: Path) -> None:
    assert EventReader(tmp_path).read_all() == []


def test_the_latest_value_of_each_metric_is_kept(tmp_path: Path) -> None:
    events = [
        Event(1, "metrics", {"step": 1, "epoch": 0, "values": {"loss": 0.9}}),
        Event(2, "metrics", {"step": 9, "epoch": 1, "values": {"dice": 0.4}}),
        Event(3, "metrics", {"step": 10, "epoch": 1, "values": {"loss": 0.2}}),
    ]
    latest = fold(RunView(), events).metrics
    assert latest == {"step": 10, "epoch": 1, "values": {"loss": 0.2, "dice": 0.4}}


def test_a_warning_repeated_by_a_resumed_run_is_told_once() -> None:
    warning = Event(2, "warning", {"seq": 2, "code": "small_set", "detail": "3 frames"})
    again = Event(5, "warning", {"seq": 5, "code": "small_set", "detail": "3 frames"})
    assert fold(RunView(), [warning, again]).warnings == (
        {"code": "small_set", "detail": "3 frames"},
    )


def test_a_new_start_takes_back_the_end_of_the_attempt_before() -> None:
    failed = Event(1, "failed", {"code": "x"})
    view = fold(RunView(), [failed])
    assert view.terminal == failed
    assert fold(view, [Event(2, "started", {"pid": 8})]).terminal is None


def test_the_fraction_is_unknown_until_the_number_of_steps_is_known() -> None:
    def fraction(**data: Any) -> float | None:
        value: float | None = fold(RunView(), [Event(1, "progress", data)]).progress["fraction"]
        return value

    assert fraction(step=3, steps_total=12) == 0.25
    assert fraction(step=3, steps_total=None) is None
    assert fraction(step=0, steps_total=0) is None
