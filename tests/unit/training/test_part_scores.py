"""A part is rejected at its score, and at nothing above it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from data import Frame
from models import ClassThreshold, OperatingPoint, find_defects
from training.part_scores import AREAS_PX, STEP, PartScores, area_scores

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
        assert verdict_at(scores, score, area_px)
    if score < 1:
        assert not verdict_at(scores, score + STEP, area_px)


def test_a_part_has_the_highest_score_of_its_frames_and_is_defective_if_any_is() -> None:
    generator = np.random.default_rng(0)
    parts = {"a1": "a", "a2": "a"}
    scored = PartScores(("pit", "dent"), parts)
    maps = {name: generator.random((2, 20, 20), np.float32) for name in ("a1", "a2", "b", "c")}
    for name, probabilities in maps.items():
        mask = np.zeros((20, 20, 2), np.uint8)
        mask[3, 3, 0] = name == "a2"
        mask[5, 5, 1] = name == "b"
        scored.add(Frame(name, np.zeros((20, 20, 1), np.uint8), mask), probabilities)

    pits = scored.candidates("pit")

    assert len(pits) == len(AREAS_PX)
    expected = np.maximum(area_scores(maps["a1"][0]), area_scores(maps["a2"][0]))
    assert [candidate.defective.tolist() for candidate in pits] == [[value] for value in expected]
    # Only "c" is good: "b" shows another class.
    good = area_scores(maps["c"][0])
    assert [candidate.good.tolist() for candidate in pits] == [[value] for value in good]
    assert len(scored.candidates("dent")[0].defective) == 1


@pytest.mark.parametrize("shape", [(1, 1), (7, 3)])
def test_a_map_without_evidence_has_a_score_of_zero(shape: tuple[int, int]) -> None:
    assert area_scores(np.zeros(shape, np.float32)) == (0.0,) * len(AREAS_PX)
