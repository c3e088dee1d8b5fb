"""A part is rejected at its score, and at nothing above it."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from data import Frame
from models import ClassThreshold, OperatingPoint, find_defects
from models.part_scores import AREAS_PX, STEPS, PartScores, candidates, rates_at
from training.part_scores import PartScorer, area_scores

_MAPS = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9),
    elements=st.sampled_from([k / 1000 for k in (0, 1, 2, 399, 400, 401, 999, 1000)]).map(
        lambda value: float(np.float32(value))
    ),
)


def verdict_at(scores: np.ndarray, threshold: float, area_px: int) -> bool:
    """Whether serving would reject the frame."""
    chosen = ClassThreshold(threshold=threshold, min_area_px=area_px)
    found, _ = find_defects(scores[None], ["pit"], OperatingPoint(classes={"pit": chosen}))
    return bool(found)


@given(_MAPS, st.sampled_from(AREAS_PX))
def test_serving_rejects_a_frame_at_its_score_and_not_one_step_above(
    scores: np.ndarray, area_px: int
) -> None:
    score = area_scores(scores)[AREAS_PX.index(area_px)]

    if score > 0:
        assert verdict_at(scores, score / STEPS, area_px)
    if score < STEPS:
        assert not verdict_at(scores, (score + 1) / STEPS, area_px)


def test_a_part_has_the_highest_score_of_its_frames_and_is_defective_if_any_is() -> None:
    generator = np.random.default_rng(0)
    parts = {"a1": "a", "a2": "a"}
    scored = PartScorer(("pit", "dent"), parts)
    maps = {name: generator.random((2, 20, 20), np.float32) for name in ("a1", "a2", "b", "c")}
    for name, probabilities in maps.items():
        mask = np.zeros((20, 20, 2), np.uint8)
        mask[3, 3, 0] = name == "a2"
        mask[5, 5, 1] = name == "b"
        scored.add(Frame(name, np.zeros((20, 20, 1), np.uint8), mask), probabilities)

    pits = candidates(scored.parts(), "pit")

    assert len(pits) == len(AREAS_PX)
    expected = np.maximum(area_scores(maps["a1"][0]), area_scores(maps["a2"][0]))
    assert [candidate.defective.tolist() for candidate in pits] == [
        [value] for value in expected / STEPS
    ]
    # Only "c" is good: "b" shows another class.
    good = np.array(area_scores(maps["c"][0])) / STEPS
    assert [candidate.good.tolist() for candidate in pits] == [[value] for value in good]
    assert len(candidates(scored.parts(), "dent")[0].defective) == 1


@pytest.mark.parametrize("shape", [(1, 1), (7, 3)])
def test_a_map_without_evidence_has_a_score_of_zero(shape: tuple[int, int]) -> None:
    assert area_scores(np.zeros(shape, np.float32)) == (0,) * len(AREAS_PX)


@given(st.integers(0, 2**32 - 1), st.sampled_from(AREAS_PX), st.integers(1, STEPS))
@settings(max_examples=30, deadline=None)
def test_kept_scores_give_the_verdicts_that_serving_would_give(
    seed: int, area_px: int, step: int
) -> None:
    generator = np.random.default_rng(seed)
    by_run = OperatingPoint(
        classes={
            "pit": ClassThreshold(threshold=0.5, min_area_px=7),
            "dent": ClassThreshold(threshold=0.9, min_area_px=3),
        }
    )
    scorer = PartScorer(("pit", "dent"), {}, by_run)
    maps = []
    for index in range(6):
        smooth = cv2.GaussianBlur(generator.random((24, 24, 2), np.float32), (0, 0), 1.5)
        maps.append(np.sqrt(np.ascontiguousarray(smooth.transpose(2, 0, 1), np.float32)))
        mask = np.zeros((24, 24, 2), np.uint8)
        mask[3, 3, 0] = index % 2
        scorer.add(Frame(f"{index}", np.zeros((24, 24, 1), np.uint8), mask), maps[-1])
    moved = ClassThreshold(threshold=step / STEPS, min_area_px=area_px)
    point = OperatingPoint(classes={**by_run.classes, "pit": moved})

    told = rates_at(PartScores(run_point=by_run, calibration=(), test=scorer.parts()), point)

    rejected = [bool(find_defects(each, ["pit", "dent"], point)[0]) for each in maps]
    assert told["escape"]["events"] == sum(not out for out in rejected[1::2])
    assert told["overkill"]["events"] == sum(rejected[0::2])
    assert (told["escape"]["n"], told["overkill"]["n"]) == (3, 3)
