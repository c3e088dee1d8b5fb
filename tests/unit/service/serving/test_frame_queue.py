"""The queue in front of the device, on a clock that the test sets."""

import threading
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models import BundleInfo, Inspection
from service.errors import NotReady, TooManyRequests
from service.serving.frame_queue import (
    MAX_BATCH,
    PLACES,
    PLACES_PER_CLIENT,
    FrameQueue,
    Inspected,
    NotInspected,
    WaitingFrame,
)

SMALL: Any = np.zeros((8, 8), np.uint8)
LARGE: Any = np.zeros((2000, 2500), np.uint8)


class Clock:
    """Stands still until the test moves it."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queue(clock: Clock) -> FrameQueue:
    return FrameQueue(clock=clock)


@pytest.fixture
def put(queue: FrameQueue, clock: Clock) -> Callable[..., WaitingFrame]:
    def add(
        deadline_in_s: float | None = None, pixels: Any = SMALL, model: str = "mdl_a"
    ) -> WaitingFrame:
        deadline_s = None if deadline_in_s is None else clock.now_s + deadline_in_s
        (frame,) = queue.admit(model, f"10.0.0.{len(queue)}", deadline_s)
        queue.put(frame, pixels)
        return frame

    return add


Put = Callable[..., WaitingFrame]


def why_not(frame: WaitingFrame) -> str | None:
    """Why a frame was given up, or None if it was not."""
    if not frame.outcome.done():
        return None
    error = frame.outcome.exception()
    assert isinstance(error, NotInspected)
    return str(error)


def keep_busy(queue: FrameQueue, put: Put, duration_s: float, pixels: Any = SMALL) -> WaitingFrame:
    """Put the device to work on a frame that takes so long, as far as the queue can know."""
    first = put(pixels=pixels)
    queue.record_duration(first.kind, duration_s)
    assert queue.take() == [first]
    return first


def test_one_client_may_not_take_every_place(queue: FrameQueue) -> None:
    for _ in range(PLACES_PER_CLIENT):
        queue.admit("mdl_a", "10.0.0.1", None)
    with pytest.raises(TooManyRequests) as flooded:
        queue.admit("mdl_a", "10.0.0.1", None)
    assert flooded.value.retry_after_s is not None

    for _ in range(PLACES - PLACES_PER_CLIENT):
        queue.admit("mdl_a", "10.0.0.2", None)
    with pytest.raises(NotReady) as full:
        queue.admit("mdl_a", "10.0.0.3", None)
    assert not isinstance(full.value, TooManyRequests)


def test_a_part_gets_places_for_all_of_its_frames_or_none(queue: FrameQueue) -> None:
    queue.admit("mdl_a", "10.0.0.1", None, count=PLACES_PER_CLIENT)
    with pytest.raises(NotReady):
        queue.admit("mdl_a", "10.0.0.2", None, count=PLACES - PLACES_PER_CLIENT + 1)
    assert len(queue) == PLACES_PER_CLIENT


def test_who_leaves_frees_the_place_and_is_not_inspected(queue: FrameQueue, put: Put) -> None:
    gone, stays = put(), put()
    queue.leave(gone)
    queue.leave(gone)
    assert len(queue) == 1
    assert queue.take() == [stays]


def test_a_frame_whose_sender_no_longer_wants_it_never_reaches_the_device(
    queue: FrameQueue, put: Put
) -> None:
    cancelled, wanted = put(pixels=LARGE), put()
    cancelled.outcome.cancel()
    assert queue.take() == [wanted]


def test_a_passed_deadline_is_told_and_not_inspected(
    queue: FrameQueue, put: Put, clock: Clock
) -> None:
    late, patient = put(deadline_in_s=1), put()
    clock.now_s += 1.5
    assert queue.take() == [patient]
    assert why_not(late) == "the deadline passed before the frame was inspected"


def test_a_deadline_that_cannot_be_met_behind_the_frame_under_way_is_told_at_once(
    queue: FrameQueue, put: Put
) -> None:
    keep_busy(queue, put, 2.0)
    hopeless, hopeful = put(deadline_in_s=3.9), put(deadline_in_s=4.1)
    assert "could not be met" in (why_not(hopeless) or "")
    assert why_not(hopeful) is None


def test_a_frame_that_finds_the_device_free_is_tried_however_slow_the_last_ones_were(
    queue: FrameQueue, put: Put
) -> None:
    queue.record_duration(keep_busy(queue, put, 60.0).kind, 60.0)
    behind_it = threading.Thread(target=queue.take)
    behind_it.start()
    only = put(deadline_in_s=1)
    behind_it.join(10)
    assert not behind_it.is_alive()
    assert why_not(only) is None


def test_of_frames_that_all_come_too_late_the_first_is_tried_so_that_slow_is_not_for_ever(
    queue: FrameQueue, put: Put, clock: Clock
) -> None:
    keep_busy(queue, put, 2.0)
    first, second = put(deadline_in_s=4.5), put(deadline_in_s=4.6)
    clock.now_s += 3
    assert queue.take() == [first]
    assert why_not(second) is None


def test_a_hopeless_frame_does_not_take_the_device_from_one_that_can_be_met(
    queue: FrameQueue, put: Put, clock: Clock
) -> None:
    keep_busy(queue, put, 2.0)
    hopeless, hopeful = put(deadline_in_s=4.5), put(deadline_in_s=9)
    clock.now_s += 3
    assert queue.take() == [hopeful]
    assert "2000 ms" in (why_not(hopeless) or "")


def test_the_quickest_of_the_last_frames_decides_what_is_hopeless(
    queue: FrameQueue, put: Put
) -> None:
    first = keep_busy(queue, put, 1.0)
    queue.record_duration(first.kind, 30.0)
    assert why_not(put(deadline_in_s=2.5)) is None


def test_waiting_frames_of_one_kind_go_together(queue: FrameQueue, put: Put) -> None:
    alike = [put(), put(model="mdl_b"), put(), put(pixels=SMALL.astype(np.uint16)), put()]
    assert queue.take() == [alike[0], alike[2], alike[4]]
    assert queue.take() == [alike[1]]


def test_a_batch_takes_no_more_memory_than_one_frame_of_the_usual_size(
    queue: FrameQueue, put: Put
) -> None:
    first, second = put(pixels=LARGE), put(pixels=LARGE)
    assert queue.take() == [first]
    assert queue.take() == [second]


def test_a_batch_is_no_larger_than_every_deadline_in_it_allows(queue: FrameQueue, put: Put) -> None:
    keep_busy(queue, put, 1.0)
    patient = [put(), put(), put()]
    hurried = put(deadline_in_s=2.5)
    assert queue.take() == patient
    assert queue.take() == [hurried]


@given(st.lists(st.sampled_from([0.5, 1.5, 3.0, None]), max_size=PLACES - 1))
def test_every_frame_is_inspected_or_told_why_not(deadlines: list[float | None]) -> None:
    clock = Clock()
    queue = FrameQueue(clock=clock)
    frames = []
    # The last one, without a deadline, keeps the taker from waiting for ever.
    for number, deadline_s in enumerate([*deadlines, None]):
        absolute_s = None if deadline_s is None else clock.now_s + deadline_s
        frames += queue.admit("mdl_a", str(number), absolute_s)
        queue.put(frames[-1], SMALL)
    # The queue doesn't look at what a model says.
    nothing = Inspected(cast("BundleInfo", None), Inspection("OK", (), None, (), {}), queue_s=0.0)
    inspected: list[WaitingFrame] = []
    while any(not frame.outcome.done() for frame in frames):
        batch = queue.take()
        assert 1 <= len(batch) <= MAX_BATCH
        clock.now_s += 1.0
        queue.record_duration(batch[0].kind, 1.0)
        for frame in batch:
            frame.outcome.set_result(nothing)
        inspected += batch
    told = [frame for frame in frames if frame not in inspected]
    assert all(why_not(frame) for frame in told)
    assert all(frame.deadline_s is not None for frame in told)
