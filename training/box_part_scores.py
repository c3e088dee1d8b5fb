"""A part's score under a detector: the highest threshold at which a box of it is still reported."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from models import OperatingPoint
from models.part_scores import NEVER, STEPS, ScoredPart
from training.average_precision import JudgedFrame

# Serving compares in single precision, as scores are.
_STEPS = (np.arange(STEPS + 1) / STEPS).astype(np.float32)


@dataclass
class _Part:
    shows: set[int] = field(default_factory=set)
    rejected_for: set[int] = field(default_factory=set)
    # Of the strongest box of each class.
    scores: dict[int, int] = field(default_factory=dict)


def box_part_scores(
    frames: Sequence[JudgedFrame], classes: Sequence[str], point: OperatingPoint | None = None
) -> tuple[ScoredPart, ...]:
    """Return the parts that frames show, in the order in which they came.

    What a detector lists does not depend on thresholds, so a part's score is that of its strongest
    box, and `NEVER` where it has none.  Boxes have no minimum area: it is one score a class.

    Args:
        frames: As judged, with their parts.
        classes: In the order of the model's classes.
        point: Where given, it is noted of which classes it reports a box.
    """
    parts: dict[str, _Part] = {}
    for frame in frames:
        part = parts.setdefault(frame.part, _Part())
        part.shows.update(frame.labelled.classes.tolist())
        for score, index in zip(frame.found.scores, frame.found.classes.tolist(), strict=True):
            step = int(np.searchsorted(_STEPS, score, side="right")) - 1
            part.scores[index] = max(step, part.scores.get(index, NEVER))
            if point is not None and score >= point.classes[classes[index]].threshold:
                part.rejected_for.add(index)
    return tuple(
        ScoredPart(
            part=name,
            defective=bool(part.shows),
            shows=tuple(each for index, each in enumerate(classes) if index in part.shows),
            scores={each: (part.scores.get(index, NEVER),) for index, each in enumerate(classes)},
            rejected_for=tuple(
                each for index, each in enumerate(classes) if index in part.rejected_for
            ),
        )
        for name, part in parts.items()
    )
