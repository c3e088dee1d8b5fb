"""Training pauses while a line asks for verdicts, for a bounded time, and learns the same."""

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training_runs import make_run, weights
from training.events import read_events
from training.run import execute
from training.run_directory import RunDirectory
from training.yielding import QUIET_S, Yielding, read_yielding


def never() -> bool:
    return False


@contextmanager
def frames_arriving(mark: Path) -> Iterator[None]:
    done = threading.Event()

    def touch() -> None:
        while not done.is_set():
            mark.touch()
            done.wait(0.1)

    thread = threading.Thread(target=touch)
    mark.touch()
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def ask_to_yield(run: RunDirectory, mark: Path, longest_pause_s: float) -> None:
    run.yield_request.parent.mkdir()
    asked = {"mark": str(mark), "longest_pause_s": longest_pause_s}
    run.yield_request.write_text(json.dumps(asked))


def test_nobody_is_made_way_for_without_a_request_or_a_frame(tmp_path: Path) -> None:
    begun: list[int] = []
    for yielding in (
        read_yielding(tmp_path / "yield.json"),
        Yielding(tmp_path / "mark", longest_pause_s=9),
    ):
        assert yielding.pause(until=never, begin=lambda: begun.append(1)) == 0
    assert not begun


@pytest.mark.parametrize("shift_s", [-3600, 3600])
def test_an_old_mark_or_one_of_a_clock_set_back_is_no_frame(tmp_path: Path, shift_s: int) -> None:
    mark = tmp_path / "mark"
    mark.touch()
    when = time.time() + shift_s
    os.utime(mark, (when, when))
    assert not Yielding(mark, longest_pause_s=9).is_wanted


def test_a_pause_ends_when_the_line_rests_is_cancelled_or_was_long_enough(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    mark.touch()
    rested_s = Yielding(mark, longest_pause_s=60).pause(until=never, begin=never)
    assert QUIET_S / 2 < rested_s < 30
    with frames_arriving(mark):
        assert Yielding(mark, longest_pause_s=0.2).pause(until=never, begin=never) >= 0.2
        assert Yielding(mark, longest_pause_s=60).pause(until=lambda: True, begin=never) < 30
        assert Yielding(mark, longest_pause_s=0).pause(until=never, begin=never) == 0


def test_a_run_beside_a_line_that_never_rests_ends_at_the_weights_of_one_alone(
    tmp_path: Path, frames: Path
) -> None:
    wishes: dict[str, Any] = {"budget": {"max_steps": 3, "max_epochs": 3}, "recalibration": None}
    alone = make_run(tmp_path / "alone", frames, **wishes)
    assert execute(alone.path) == 0

    beside = make_run(tmp_path / "beside", frames, **wishes)
    mark = tmp_path / "serving"
    ask_to_yield(beside, mark, longest_pause_s=2.0)
    begin_s = time.monotonic()
    with frames_arriving(mark):
        assert execute(beside.path) == 0
    whole_s = time.monotonic() - begin_s

    events = list(read_events(beside.events))
    paused = [event for event in events if event["kind"] == "paused"]
    assert [event["step"] for event in paused] == [0, 1, 2]
    assert all(event["paused_s"] >= 2.0 for event in paused)
    warned = [event for event in events if event.get("code") == "training_pauses"]
    assert len(warned) == 1
    trained_s = json.loads(beside.report.read_text())["training"]["seconds"]
    # Told to a tenth of a second.
    assert trained_s <= whole_s - sum(event["paused_s"] for event in paused) + 0.05
    expected, found = weights(alone), weights(beside)
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name
