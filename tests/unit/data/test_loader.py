"""Loading ahead: order, the bound, errors and an early end."""

import threading
import time

import pytest

from data.loader import batches_ahead, prefetch


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_results_come_in_the_order_of_their_keys(workers: int) -> None:
    def load(key: int) -> int:
        time.sleep(0.001 * (key % 3))
        return key * key

    loaded = list(prefetch(load, range(40), workers=workers, ahead=2 * workers))
    assert loaded == [key * key for key in range(40)]


def test_no_more_is_loaded_than_may_wait() -> None:
    begun: list[int] = []
    loaded = prefetch(begun.append, range(100), workers=3, ahead=5)
    for taken in range(1, 20):
        next(loaded)
        time.sleep(0.01)
        assert len(begun) <= taken + 5
    loaded.close()


def test_an_error_comes_at_its_place_with_its_key_and_what_is_before_it_first() -> None:
    def load(key: str) -> str:
        if key == "c":
            raise ValueError("no")
        return key

    loaded = prefetch(load, "abcd", workers=2, ahead=4)
    assert [next(loaded), next(loaded)] == ["a", "b"]
    with pytest.raises(ValueError, match="no") as caught:
        next(loaded)
    assert caught.value.__notes__ == ["while loading c"]


def test_closing_early_ends_the_threads() -> None:
    before = threading.active_count()
    loaded = prefetch(lambda key: key, range(1000), workers=4, ahead=8)
    next(loaded)
    assert threading.active_count() > before
    loaded.close()
    assert threading.active_count() == before


def test_memory_bounds_what_waits_and_one_batch_is_always_allowed() -> None:
    assert batches_ahead(4, 10**6) == 8
    assert batches_ahead(4, 700_000_000) == 3
    assert batches_ahead(4, 10**12) == 1
