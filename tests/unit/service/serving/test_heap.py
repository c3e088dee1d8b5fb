"""No answer waits until the garbage collector has walked every library."""

import gc

from service.serving.heap import settle_heap


def test_a_full_collection_walks_nothing_that_was_there_before() -> None:
    kept: list[list[int]] = [[] for _ in range(10_000)]
    try:
        settle_heap()
        assert gc.get_freeze_count() > len(kept)
        assert len(gc.get_objects()) < len(kept) / 10
    finally:
        gc.unfreeze()
