"""Some of many places stand for all of them."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from training.evenly_spread import evenly_spread


@given(count=st.integers(0, 500), most=st.integers(1, 100))
def test_places_are_as_many_as_asked_for_in_order_and_equally_far_apart(
    count: int, most: int
) -> None:
    places = evenly_spread(count, most)
    assert len(places) == min(count, most)
    assert places == sorted(set(places))
    assert all(0 <= place < count for place in places)
    steps = {after - before for before, after in pairwise(places)}
    assert not steps or max(steps) - min(steps) <= 1
    if len(places) > 1:
        assert (places[0], places[-1]) == (0, count - 1)
