"""Do two answers on one frame agree?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Defects = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Agreement:
    """How two answers compare.

    Attributes:
        same_verdict: Both say OK, or both NG.
        same_defects: Each defect of one shares a pixel of its box with one of the same class of the
            other, both ways.  Boxes of two networks are never quite the same.
    """

    same_verdict: bool
    same_defects: bool

    @property
    def is_complete(self) -> bool:
        """Whether there is nothing to look at."""
        return self.same_verdict and self.same_defects


def compare(first: Mapping[str, Any], second: Mapping[str, Any]) -> Agreement:
    """Compare two answers, each with ``verdict`` and ``defects`` of ``class`` and ``box``."""
    same_defects = _are_matched(first["defects"], second["defects"]) and _are_matched(
        second["defects"], first["defects"]
    )
    return Agreement(first["verdict"] == second["verdict"], same_defects)


def _are_matched(defects: Defects, others: Defects) -> bool:
    """Return whether each defect meets one of the same class."""
    for name in {defect["class"] for defect in defects}:
        left, top, right, bottom = _edges(defects, name)
        if not any(other["class"] == name for other in others):
            return False
        their_left, their_top, their_right, their_bottom = _edges(others, name)
        meets = (
            (left[:, None] < their_right)
            & (their_left < right[:, None])
            & (top[:, None] < their_bottom)
            & (their_top < bottom[:, None])
        )
        if not meets.any(axis=1).all():
            return False
    return True


def _edges(defects: Defects, name: str) -> tuple[Any, Any, Any, Any]:
    boxes = np.array([defect["box"] for defect in defects if defect["class"] == name])
    return boxes[:, 0], boxes[:, 1], boxes[:, 0] + boxes[:, 2], boxes[:, 1] + boxes[:, 3]
