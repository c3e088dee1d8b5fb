"""The event log survives its writer's death."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from training.events import EventLog, read_events


def test_events_are_numbered_and_in_order(tmp_path: Path) -> None:
    events_log = EventLog(tmp_path / "events.jsonl")
    events_log.write("stage", stage="running")
    events_log.warning("code", "detail")
    events_log.close()
    events = read_events(tmp_path / "events.jsonl")
    assert [(event["seq"], event["kind"]) for event in events] == [(1, "stage"), (2, "warning")]
    assert all(event["time"].endswith("Z") for event in events)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 400))
def test_cut_anywhere_the_log_goes_on_after_its_last_whole_event(
    tmp_path: Path, length: int
) -> None:
    path = tmp_path / "events.jsonl"
    path.unlink(missing_ok=True)
    log = EventLog(path)
    for index in range(5):
        log.write("progress", step=index, detail="ein Maß")
    log.close()
    content = path.read_bytes()[:length]
    path.write_bytes(content)
    whole = content.count(b"\n")
    assert [event["step"] for event in read_events(path)] == list(range(whole))

    log = EventLog(path)
    log.write("heartbeat")
    log.close()
    events = read_events(path)
    assert [event["seq"] for event in events] == list(range(1, whole + 2))
    assert events[-1]["kind"] == "heartbeat"


def test_no_event_can_hold_what_json_cannot(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    with pytest.raises(ValueError, match="not JSON compliant"):
        log.write("metrics", values={"loss": float("nan")})
    log.write("metrics", values={"loss": None})
    log.close()
    assert [json.dumps(event["values"]) for event in read_events(tmp_path / "events.jsonl")] == [
        '{"loss": null}'
    ]
