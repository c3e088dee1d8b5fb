"""What a model says of a frame when it is asked directly, and how far an answer may be from it.

Runtimes differ in the last digits of what a network says.  So a frame's defects are found three
times: at the model's thresholds, a tolerance below and a tolerance above, in logits.  A runtime
that is within the tolerance finds regions between the two, and nothing else.  Where the two don't
have the same defects, the answer hangs on less than the tolerance, and the frame can't be checked.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy.special import expit, logit

from models import Defect, FrozenDetector, FrozenModel, OperatingPoint, Pixels, find_defects

# (left, top, right, bottom), the last two beyond the last pixel.
Corners = tuple[int, int, int, int]


@dataclass(frozen=True)
class DefectBounds:
    """Where one defect of an answer has to lie.

    Attributes:
        class_name: Its class.
        scores: Least and most.
        inner: A box that its box holds.
        outer: A box that holds its box.
        areas_px: Least and most.
    """

    class_name: str
    scores: tuple[float, float]
    inner: Corners
    outer: Corners
    areas_px: tuple[int, int]

    def hold(self, defect: Mapping[str, Any]) -> bool:
        """Return whether a defect, as the API tells it, is within."""
        corners = corners_of(defect["box"])
        return (
            defect["class"] == self.class_name
            and self.scores[0] <= defect["score"] <= self.scores[1]
            and self.areas_px[0] <= defect["area_px"] <= self.areas_px[1]
            and holds(self.outer, corners)
            and holds(corners, self.inner)
        )

    def meet(self, other: "DefectBounds") -> bool:
        """Return whether one defect could be within both."""
        return (
            self.class_name == other.class_name
            and _meet(self.scores, other.scores)
            and _meet(self.areas_px, other.areas_px)
            and holds(self.outer, other.inner)
            and holds(other.outer, self.inner)
        )


@dataclass(frozen=True)
class ExpectedAnswer:
    """What one model has to say of one frame."""

    verdict: str
    defects: tuple[DefectBounds, ...]

    def holds(self, answer: Mapping[str, Any]) -> bool:
        """Return whether an answer of ``/predict`` says this."""
        left = list(answer["defects"])
        if answer["verdict"] != self.verdict or len(left) != len(self.defects):
            return False
        for bounds in self.defects:
            own = next((defect for defect in left if bounds.hold(defect)), None)
            if own is None:
                return False
            left.remove(own)
        return True

    def is_told_from(self, other: "ExpectedAnswer") -> bool:
        """Return whether no answer could be taken for both."""
        if len(self.defects) != len(other.defects):
            return True
        return any(not any(one.meet(two) for two in other.defects) for one in self.defects)


def expected_answer(
    model: FrozenModel | FrozenDetector, pixels: Pixels, tolerance: float
) -> ExpectedAnswer | None:
    """Ask a model directly; None if its answer hangs on less than the tolerance.

    Args:
        model: The frozen model, in this process.
        pixels: The decoded frame.
        tolerance: Of a pixel's logit.
    """
    inspection = model.inspect(pixels)
    assert inspection.probabilities is not None, "models of these loads answer with pixels"
    classes, point = model.info.classes, model.info.operating_point
    wide, narrow = (
        find_defects(inspection.probabilities, classes, _shifted(point, delta))[0]
        for delta in (-tolerance, tolerance)
    )
    bounds = _paired(wide, inspection.defects, narrow, tolerance)
    return None if bounds is None else ExpectedAnswer(inspection.verdict, bounds)


def corners_of(box: Sequence[int]) -> Corners:
    """Return the corners of a box (x, y, width, height)."""
    x, y, width, height = box
    return x, y, x + width, y + height


def holds(outer: Corners, inner: Corners) -> bool:
    """Return whether a box lies in another one."""
    return (
        outer[0] <= inner[0]
        and outer[1] <= inner[1]
        and outer[2] >= inner[2]
        and outer[3] >= inner[3]
    )


def _shifted(point: OperatingPoint, delta: float) -> OperatingPoint:
    classes = {
        name: one.model_copy(update={"threshold": _moved(one.threshold, delta)})
        for name, one in point.classes.items()
    }
    return point.model_copy(update={"classes": classes})


def _paired(
    wide: Sequence[Defect], middle: Sequence[Defect], narrow: Sequence[Defect], tolerance: float
) -> tuple[DefectBounds, ...] | None:
    """Return each defect's bounds; None unless it has a partner of its own of either kind."""
    if not len(wide) == len(middle) == len(narrow):
        return None
    around = [
        _nearest(defect, [one for one in wide if _is_within(defect, one)]) for defect in middle
    ]
    within = [
        _nearest(defect, [one for one in narrow if _is_within(one, defect)]) for defect in middle
    ]
    found = []
    for defect, large, small in zip(middle, around, within, strict=True):
        if large is None or small is None:
            return None
        found.append(
            DefectBounds(
                class_name=defect.class_name,
                scores=(_moved(defect.score, -tolerance), _moved(defect.score, tolerance)),
                inner=corners_of(small.box),
                outer=corners_of(large.box),
                areas_px=(small.area_px, large.area_px),
            )
        )
    are_own = all(
        len({id(one) for one in partners}) == len(middle) for partners in (around, within)
    )
    return tuple(found) if are_own else None


def _nearest(defect: Defect, partners: Sequence[Defect]) -> Defect | None:
    """Return the partner whose area is nearest: boxes of other regions may lie around it too."""
    return min(partners, key=lambda one: abs(one.area_px - defect.area_px), default=None)


def _moved(probability: float, delta: float) -> float:
    """Return the probability whose logit is that of another one and ``delta``."""
    return float(expit(logit(probability) + delta))


def _is_within(small: Defect, large: Defect) -> bool:
    same = small.class_name == large.class_name
    return same and holds(corners_of(large.box), corners_of(small.box))


def _meet(one: tuple[float, float], two: tuple[float, float]) -> bool:
    return one[0] <= two[1] and two[0] <= one[1]
