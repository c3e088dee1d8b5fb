"""What the data room's tests share."""

import hashlib
from collections.abc import Callable

import pytest

from data import GoodFrame, Item, Polygon, PolygonLabels

ItemFactory = Callable[..., Item]


@pytest.fixture(scope="session")
def make_item() -> ItemFactory:
    """Build an item of which only the name and whether it is defective matter."""

    def make(name: str, *, defective: bool = False) -> Item:
        triangle = Polygon("pit", ((1, 1), (5, 1), (1, 5)))
        return Item(
            name=name,
            key=name,
            file=f"blobs/{hashlib.sha256(name.encode()).hexdigest()}",
            sha256=hashlib.sha256(name.encode()).hexdigest(),
            width=64,
            height=48,
            channels=1,
            bit_depth=8,
            group=None,
            split=None,
            labels=PolygonLabels((triangle,)) if defective else GoodFrame(),
        )

    return make
