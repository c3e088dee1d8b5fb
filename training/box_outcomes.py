"""What became of each test frame under a detector, as `training.frame_outcomes` tells it."""

from collections.abc import Iterable, Sequence

import numpy as np

from data import Item
from models import OperatingPoint
from training.average_precision import JudgedFrame
from training.box_matches import match_places
from training.frame_outcomes import DefectOutcome, FrameOutcome


def box_outcomes(
    frames: Sequence[JudgedFrame],
    items: Iterable[Item],
    classes: Sequence[str],
    point: OperatingPoint,
) -> tuple[FrameOutcome, ...]:
    """Return the outcome of each frame at an operating point.

    A labelled box is found as `training.box_matches` says, so that its count is the report's.  A
    detector answers with no pixels, and none are counted.

    Args:
        frames: As judged, in the order of ``items``.
        items: The frames' own, for their names and groups.
        classes: In the order of the model's classes.
        point: At which a box counts as reported.
    """
    return tuple(
        _outcome(frame, item, classes, point) for frame, item in zip(frames, items, strict=True)
    )


def _outcome(
    frame: JudgedFrame, item: Item, classes: Sequence[str], point: OperatingPoint
) -> FrameOutcome:
    defects: list[DefectOutcome] = []
    reported_count = false_count = 0
    for index, name in enumerate(classes):
        labelled = frame.labelled.boxes[frame.labelled.classes == index]
        mine = frame.found.classes == index
        mine &= frame.found.scores.astype(np.float64) >= point.classes[name].threshold
        places = match_places(frame.found.boxes[mine], labelled)
        reported_count += len(places)
        false_count += places.count(-1)
        defects += [
            DefectOutcome(
                class_name=name,
                area_px=round(float(sides.prod())),
                short_side_px=round(float(sides.min()), 1),
                found=place in places,
            )
            for place, sides in enumerate(labelled[:, 2:] - labelled[:, :2])
        ]
    return FrameOutcome(
        name=item.name,
        group=item.group,
        defective=not frame.is_good,
        rejected=reported_count > 0,
        pixels=None,
        false_regions=false_count,
        defects=tuple(defects),
    )
