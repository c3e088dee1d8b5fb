"""What the frozen model of a run comes to: its parity, operating point, metrics and baselines."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data import Frame, FrameDataset
from models import Bundle, FrozenDetector, FrozenModel, OperatingPoint
from models.certificate import EscapeConstraint
from models.certified_point import certified_point
from models.part_scores import BOX_AREAS_PX, PartScores
from norm import FoldReport
from training.baselines import trivial_baselines
from training.box_outcomes import box_outcomes
from training.box_part_scores import box_part_scores
from training.detection_evaluation import (
    choose_box_thresholds,
    evaluate_detections,
    judge_frames,
    trivial_box_baselines,
)
from training.evaluation import Frames, choose_operating_point, judge, whole_frames
from training.frame_outcomes import FrameOutcome, OutcomeRecorder
from training.freezing_parity import detection_parity, segmentation_parity
from training.gallery import Gallery
from training.judged_boxes import BoxFindings
from training.part_scores import PartScorer
from training.performance import StopWatch, TimedDetector, TimedModel
from training.preparation import Prepared


@dataclass(frozen=True)
class Judged:
    """What was found out about a frozen model.

    Attributes:
        parity: How far it is from the trained network.
        point: Chosen on the calibration frames.
        metrics: On the test frames, at that point.
        details: Curves, tables and what else the report tells of the test frames.
        baselines: What answers without training reach on the test frames.
        folding: What became of its normalization layers.
        prediction: How many frames a second it judged, see `StopWatch`.
        outcomes: What became of each test frame.
        part_scores: What other thresholds would rest on.
    """

    parity: dict[str, Any]
    point: OperatingPoint
    metrics: dict[str, Any]
    details: dict[str, Any]
    baselines: dict[str, Any]
    folding: FoldReport
    prediction: dict[str, Any]
    outcomes: tuple[FrameOutcome, ...]
    part_scores: PartScores


def judge_segmentation(
    prepared: Prepared,
    bundle: Bundle,
    tolerance: float,
    gallery: Path,
    constraint: EscapeConstraint | None = None,
) -> Judged:
    """Freeze a segmentation bundle, choose its operating point and judge it once.

    With a constraint the point is one that proves it, see `models.certified_point`.

    Side effects: the worst findings are drawn into the folder ``gallery``.

    Raises:
        ParityError: See `segmentation_parity`.
    """
    classes = prepared.manifest.classes
    frozen = FrozenModel(bundle, str(prepared.device))
    frozen.tiles_for = prepared.look_tiles
    parity = segmentation_parity(prepared, frozen, tolerance)
    calibration = _frames_of(prepared.calibration)
    calibrated = PartScorer(classes, parts_of(prepared.calibration))
    point = choose_operating_point(frozen, calibration, classes, calibrated.add)
    if constraint is not None:
        point = certified_point(point, calibrated.parts(), lambda _: constraint)
    watch = StopWatch()
    recorder = OutcomeRecorder(classes, point, prepared.test.items)
    tested = PartScorer(classes, parts_of(prepared.test), point)

    def tell(frame: Frame, probabilities: NDArray[np.float32]) -> None:
        recorder.add(frame, probabilities)
        tested.add(frame, probabilities)

    judgement = judge(
        TimedModel(frozen, watch),
        _frames_of(prepared.test)(),
        classes,
        point,
        parts=parts_of(prepared.test),
        tell=tell,
    )
    details = {**judgement.details(), "gallery": judgement.gallery.write(gallery)}
    baselines = trivial_baselines(_frames_of(prepared.calibration)(), _frames_of(prepared.test)())
    return Judged(
        parity,
        point,
        judgement.metrics(),
        details,
        baselines,
        frozen.fold_report,
        watch.summary(),
        tuple(recorder.outcomes),
        PartScores(run_point=point, calibration=calibrated.parts(), test=tested.parts()),
    )


def judge_detector(
    prepared: Prepared,
    bundle: Bundle,
    tolerance: float,
    gallery: Path,
    constraint: EscapeConstraint | None = None,
) -> Judged:
    """Freeze a detection bundle, choose its operating point and judge it once.

    With a constraint the point is one that proves it, see `models.certified_point`.

    Side effects: the worst findings are drawn into the folder ``gallery``.

    Raises:
        ParityError: See `detection_parity`.
    """
    classes, detection = prepared.manifest.classes, prepared.model.detection
    assert detection is not None
    limit = detection.max_detections
    frozen = FrozenDetector(bundle, str(prepared.device))
    parity = detection_parity(prepared, frozen, tolerance)
    calibrated = judge_frames(
        frozen, whole_frames(prepared.calibration), classes, parts_of(prepared.calibration)
    )
    point = choose_box_thresholds(calibrated, classes)
    scored = box_part_scores(calibrated, classes)
    if constraint is not None:
        point = certified_point(point, scored, lambda _: constraint, BOX_AREAS_PX)
    parts = parts_of(prepared.test)
    worst = Gallery()
    tell = BoxFindings(worst, classes, point).add
    watch = StopWatch()
    timed = TimedDetector(frozen, watch)
    tested = judge_frames(timed, whole_frames(prepared.test), classes, parts, tell)
    figures = evaluate_detections(tested, classes, point, max_detections=limit)
    details = {**figures.details, "gallery": worst.write(gallery)}
    baselines = trivial_box_baselines(whole_frames(prepared.test), classes, max_detections=limit)
    return Judged(
        parity,
        point,
        figures.metrics,
        details,
        baselines,
        frozen.fold_report,
        watch.summary(),
        box_outcomes(tested, prepared.test.items, classes, point),
        PartScores(
            areas_px=BOX_AREAS_PX,
            run_point=point,
            calibration=scored,
            test=box_part_scores(tested, classes, point),
        ),
    )


def parts_of(dataset: FrameDataset) -> dict[str, str]:
    """Return the part, lot or specimen of each frame by its name."""
    return {item.name: item.group for item in dataset.items if item.group is not None}


def _frames_of(dataset: FrameDataset) -> Frames:
    return lambda: whole_frames(dataset)
