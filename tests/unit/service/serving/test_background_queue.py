"""Work in the background: bounded, in order, and never in anybody's way."""

from threading import Event, Lock

from service.serving.background_queue import BackgroundQueue


def test_what_finds_no_place_is_refused_at_once_and_the_rest_is_done_in_order() -> None:
    done: list[int] = []
    may_go_on = Event()
    began = Event()

    def handle(item: int) -> None:
        began.set()
        assert may_go_on.wait(30)
        done.append(item)

    queue = BackgroundQueue("test", 2, handle)
    assert queue.offer(0)
    assert began.wait(30)
    assert [queue.offer(item) for item in (1, 2, 3, 4)] == [True, True, False, False]
    may_go_on.set()
    queue.wait()
    assert done == [0, 1, 2]
    queue.close()
    assert not queue.offer(5)


def test_work_that_fails_does_not_end_the_work() -> None:
    done = []

    def handle(item: int) -> None:
        if item == 1:
            raise ValueError(item)
        done.append(item)

    queue = BackgroundQueue("test", 3, handle)
    for item in range(3):
        assert queue.offer(item)
    queue.wait()
    queue.close()
    assert done == [0, 2]


def test_housekeeping_is_done_after_each_item_before_it_counts_as_handled_and_at_the_end() -> None:
    ticks = 0
    guard = Lock()

    def tick() -> None:
        nonlocal ticks
        with guard:
            ticks += 1

    queue: BackgroundQueue[int] = BackgroundQueue("test", 1, lambda _: None, tick)
    assert queue.offer(0)
    queue.wait()
    assert ticks >= 1
    before = ticks
    queue.close()
    assert ticks > before


def test_a_queue_that_was_never_used_closes() -> None:
    BackgroundQueue[int]("test", 1, lambda _: None).close()
