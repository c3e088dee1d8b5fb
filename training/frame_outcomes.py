"""``test_frames.jsonl``: what became of each test frame, so that two runs compare frame by frame.

Labels are native and the same for every run of a version, so the defects of a frame come in the
same order whatever model was judged.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data import Frame, Item
from models import OperatingPoint
from models.certificate import exact_interval
from training.connected_regions import Regions, find_regions
from training.metrics import PixelCounts
from training.run_directory import write_whole

# Below this many defects a third of them says nothing.
_FEWEST_BINNED = 6


@dataclass(frozen=True)
class DefectOutcome:
    """One labelled defect.

    Attributes:
        class_name: Its class.
        area_px: Native pixels; of a detector, those of its box.
        short_side_px: Of the rectangle of least area around it: what a scratch is narrow by.  Of a
            detector, its box's.
        found: Whether a reported region of its class shares a pixel with it; of a detector, whether
            a reported box of its class matches it.
    """

    class_name: str
    area_px: int
    short_side_px: float
    found: bool


@dataclass(frozen=True)
class FrameOutcome:
    """One test frame.

    Attributes:
        name: The item's.
        group: Its part, lot or specimen; None if frames were not grouped.
        defective: Whether a defect is labelled.
        rejected: Whether a region or a box was reported.
        pixels: True positive, false positive and false negative pixels of any class; None of a
            detector.
        false_regions: Reported regions or boxes that are no labelled defect of their class.
        defects: In the order of the classes, then of the labels.
    """

    name: str
    group: str | None
    defective: bool
    rejected: bool
    pixels: tuple[int, int, int] | None
    false_regions: int
    defects: tuple[DefectOutcome, ...]


class OutcomeRecorder:
    """Notes the outcome of each frame that an evaluation looks at.

    Args:
        classes: In the order of the model's outputs.
        point: The operating point that frames are judged at.
        items: Of the frames, for their groups.

    Attributes:
        outcomes: So far, in the order of the frames.
    """

    def __init__(
        self, classes: tuple[str, ...], point: OperatingPoint, items: Iterable[Item]
    ) -> None:
        self._classes = classes
        self._point = point
        self._groups: Mapping[str, str | None] = {item.name: item.group for item in items}
        self.outcomes: list[FrameOutcome] = []

    def add(self, frame: Frame, probabilities: NDArray[np.float32]) -> None:
        """Judge one frame by the model's probabilities (K, H, W)."""
        reported_any = np.zeros(frame.mask.shape[:2], np.bool_)
        defects: list[DefectOutcome] = []
        false_regions = 0
        for index, name in enumerate(self._classes):
            chosen = self._point.classes[name]
            labels = find_regions(frame.mask[:, :, index] != 0)
            above = find_regions(probabilities[index] >= chosen.threshold)
            reports = above.keep(above.areas_px >= chosen.min_area_px)
            reported = reports.draw(reported_any.shape)
            reported_any |= reported
            false_regions += _count_apart(reports, frame.mask[:, :, index])
            sides_px = labels.short_sides_px(frame.mask.shape[1])
            found = labels.peaks(reported.astype(np.float32)) > 0
            defects += [
                DefectOutcome(name, int(area_px), round(float(side_px), 1), bool(hit))
                for area_px, side_px, hit in zip(labels.areas_px, sides_px, found, strict=True)
            ]
        labelled_any: NDArray[np.bool_] = frame.mask.max(axis=2) != 0
        counts = PixelCounts()
        counts.add(reported_any, labelled_any)
        self.outcomes.append(
            FrameOutcome(
                name=frame.name,
                group=self._groups.get(frame.name),
                defective=bool(labelled_any.any()),
                rejected=bool(reported_any.any()),
                pixels=(counts.true_positive, counts.false_positive, counts.false_negative),
                false_regions=false_regions,
                defects=tuple(defects),
            )
        )


def write_outcomes(path: Path, outcomes: Sequence[FrameOutcome]) -> None:
    """Write one JSON object a frame, whole or not at all."""
    write_whole(path, "".join(json.dumps(asdict(outcome)) + "\n" for outcome in outcomes))


def _count_apart(reports: Regions, mask: NDArray[np.uint8]) -> int:
    """Return how many reported regions share no pixel with a label (H, W)."""
    return int((reports.peaks(mask.astype(np.float32)) == 0).sum())


def defects_found(outcomes: Sequence[FrameOutcome]) -> dict[str, Any]:
    """Return the share of defects found, in all and in each third of their short sides.

    The thirds are those of the labelled defects, so they are the same for every run of a version;
    a side that many defects share makes them uneven or fewer.

    Returns:
        ``all`` with its exact 95 % interval; ``by_size`` from small to large: ``from_px`` and
        ``below_px``, None where the range is open, and ``recall`` as for all.
    """
    defects = [defect for outcome in outcomes for defect in outcome.defects]
    cuts = _cuts([defect.short_side_px for defect in defects])
    bins = []
    for low, high in zip([None, *cuts], [*cuts, None], strict=True):
        inside = [
            defect.found
            for defect in defects
            if (low is None or defect.short_side_px >= low)
            and (high is None or defect.short_side_px < high)
        ]
        recall = exact_interval(sum(inside), len(inside))
        bins.append({"from_px": low, "below_px": high, "recall": recall})
    found = sum(defect.found for defect in defects)
    return {"all": exact_interval(found, len(defects)), "by_size": bins}


def _cuts(sides_px: Sequence[float]) -> list[float]:
    """Return whole pixels that part the sides into thirds; none leaves a range empty."""
    if len(sides_px) < _FEWEST_BINNED:
        return []
    cuts: list[float] = []
    for cut in np.ceil(np.quantile(sides_px, (1 / 3, 2 / 3))).tolist():
        low = cuts[-1] if cuts else 0.0
        if any(low <= side < cut for side in sides_px) and cut <= max(sides_px):
            cuts.append(cut)
    return cuts
