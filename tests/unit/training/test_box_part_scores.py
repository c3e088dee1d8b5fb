"""A part is rejected by a detector at its score, and at nothing above it."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from models import ClassThreshold, Detections, OperatingPoint
from models.certificate import EscapeConstraint
from models.certified_point import certified_point
from models.detections import find_boxed_defects
from models.part_scores import BOX_AREAS_PX, NEVER, STEPS, PartScores, ScoredPart, rates_at
from training.average_precision import JudgedFrame, LabelledBoxes
from training.box_part_scores import box_part_scores
from training.report.wording import say_certificate

CLASSES = ("pit", "scratch")
# Thresholds are thousandths: scores at them, beside them and anywhere.
_SCORES = st.one_of(
    st.integers(0, STEPS).map(lambda step: float(np.float32(step / STEPS))),
    st.floats(0, 1, width=32),
)


def judged(part: str, found: list[tuple[int, float]], labelled: list[int]) -> JudgedFrame:
    """A frame of a part, boxes by class and score; where they lie is no matter."""
    found = sorted(found, key=lambda each: -each[1])
    boxes = np.tile(np.array([0, 0, 4, 4], np.float32), (len(found), 1))
    scores = np.array([score for _, score in found], np.float32)
    reported = Detections(boxes, scores, np.array([index for index, _ in found], np.int64))
    truth = np.zeros((len(labelled), 4), np.float32)
    return JudgedFrame(reported, LabelledBoxes(truth, np.array(labelled, np.int64)), part)


def point_at(threshold: float) -> OperatingPoint:
    return OperatingPoint(classes={name: ClassThreshold(threshold=threshold) for name in CLASSES})


@given(_SCORES)
def test_serving_rejects_a_part_at_its_score_and_not_one_step_above(score: float) -> None:
    frame = judged("a", [(0, score)], [0])
    ((at,),) = (part.scores["pit"] for part in box_part_scores([frame], CLASSES))

    def is_rejected(step: int) -> bool:
        point = point_at(step / STEPS)
        return bool(find_boxed_defects(frame.found, (9, 9), CLASSES, point, max_detections=9)[0])

    assert is_rejected(at)
    assert at == STEPS or not is_rejected(at + 1)


def test_frames_of_a_part_are_scored_together_and_a_part_without_a_box_is_never_rejected() -> None:
    frames = [
        judged("a", [(0, 0.25), (1, 0.5)], [0]),
        judged("b", [], []),
        judged("a", [(0, 0.75)], []),
    ]
    first, second = box_part_scores(frames, CLASSES, point_at(0.6))
    assert first == ScoredPart(
        part="a",
        defective=True,
        shows=("pit",),
        scores={"pit": (750,), "scratch": (500,)},
        rejected_for=("pit",),
    )
    assert (second.defective, second.shows, second.rejected_for) == (False, (), ())
    assert second.scores == {"pit": (NEVER,), "scratch": (NEVER,)}


def scored(scores: list[int], *, defective: bool) -> list[ScoredPart]:
    shows = ("pit",) if defective else ()
    return [
        ScoredPart(
            part=f"{index} {defective}", defective=defective, shows=shows, scores={"pit": (score,)}
        )
        for index, score in enumerate(scores)
    ]


def proven(parts: list[ScoredPart]) -> ClassThreshold:
    before = OperatingPoint(classes={"pit": ClassThreshold(threshold=0.7)})
    asked = EscapeConstraint(0.05)
    return certified_point(before, parts, lambda _: asked, BOX_AREAS_PX).classes["pit"]


def test_one_way_of_scoring_needs_no_more_parts_than_the_bound_itself() -> None:
    good = scored([NEVER, 100, 300], defective=False)
    chosen = proven([*scored([*range(400, 459)], defective=True), *good])
    # log(0.05) / log(0.95) is 58.4.
    assert (chosen.threshold, chosen.min_area_px) == (0.4, 1)
    certificate = chosen.evidence["certificate"]
    assert (certificate["is_proven"], certificate["candidates"]) == (True, 1)
    assert certificate["false_alarms"] == 0
    assert not proven(scored([*range(400, 458)], defective=True)).evidence["certificate"][
        "is_proven"
    ]


def test_a_part_that_no_threshold_rejects_is_an_escape_whatever_is_chosen() -> None:
    blind = scored([NEVER, *range(400, 458)], defective=True)
    kept = proven(blind)
    certificate = kept.evidence["certificate"]
    assert (kept.threshold, certificate["is_proven"]) == (0.7, False)
    # 93 parts prove five percent with one escape.
    assert (certificate["escapes"], certificate["missing_parts"]) == (1, 93 - 59)
    assert "1 of them are rejected at no threshold; 34 more" in say_certificate("pit", certificate)
    enough = proven(scored([NEVER, *range(400, 492)], defective=True)).evidence["certificate"]
    assert (enough["is_proven"], enough["escapes"]) == (True, 1)
    all_blind = proven(scored([NEVER] * 70, defective=True)).evidence["certificate"]
    assert (all_blind["is_proven"], all_blind["bound"]) == (False, 1.0)


def test_rates_at_other_thresholds_are_counted_without_a_frame() -> None:
    test = scored([NEVER, 300, 800], defective=True) + scored([NEVER, 500], defective=False)
    kept = PartScores(
        areas_px=BOX_AREAS_PX,
        run_point=OperatingPoint(classes={"pit": ClassThreshold(threshold=0.9)}),
        calibration=(),
        test=tuple(test),
    )
    lower = OperatingPoint(classes={"pit": ClassThreshold(threshold=0.4)})
    rates = rates_at(kept, lower)
    assert (rates["escape"]["events"], rates["escape"]["n"]) == (2, 3)
    assert (rates["overkill"]["events"], rates["overkill"]["n"]) == (1, 2)
