"""A labelled box is found once, thresholds are chosen where they serve best, rates are kept to."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models import Detections
from training.average_precision import JudgedFrame, LabelledBoxes
from training.box_matches import (
    ScoredMatches,
    best_threshold,
    match_boxes,
    recall_at_false_rates,
)


def matches(
    scores: list[float], hits: list[bool], labelled: int, frames: int = 10
) -> ScoredMatches:
    found_at = [score for score, hit in zip(scores, hits, strict=True) if hit]
    return ScoredMatches(
        scores=np.array(scores),
        hits=np.array(hits, np.bool_),
        on_good=np.zeros(len(scores), np.bool_),
        found_at=np.array(found_at + [-1.0] * (labelled - len(found_at))),
        sides_px=np.ones((labelled, 2)),
        frames=frames,
    )


def test_the_strongest_box_takes_the_defect_and_a_second_one_is_false() -> None:
    frame = JudgedFrame(
        Detections(
            np.array([[0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60]], np.float32),
            np.array([0.9, 0.8, 0.7], np.float32),
            np.array([0, 0, 1]),
        ),
        LabelledBoxes(np.array([[0, 0, 10, 10], [50, 50, 60, 60]], np.float32), np.array([0, 0])),
    )
    pits = match_boxes([frame], 0)
    assert pits.hits.tolist() == [True, False]
    assert (pits.labelled, pits.frames) == (2, 1)
    assert pits.found_at.tolist() == [pytest.approx(0.9), -1]
    assert pits.sides_px.tolist() == [[10, 10], [10, 10]]
    assert not pits.on_good.any()
    # A box of another class finds nothing, wherever it lies.
    assert match_boxes([frame], 1).hits.tolist() == [False]


def test_boxes_of_all_frames_are_ranked_together() -> None:
    def frame(score: float, x: int) -> JudgedFrame:
        box = np.array([[x, 0, x + 5, 5]], np.float32)
        return JudgedFrame(
            Detections(box, np.array([score], np.float32), np.array([0])),
            LabelledBoxes(np.array([[0, 0, 5, 5]], np.float32), np.array([0])),
        )

    ranked = match_boxes([frame(0.25, 0), frame(0.75, 20)], 0)
    assert ranked.scores.tolist() == [0.75, 0.25]
    assert ranked.hits.tolist() == [False, True]


def test_the_threshold_is_where_f1_is_highest_midway_to_the_next_box() -> None:
    chosen = best_threshold(matches([0.9, 0.8, 0.4, 0.3], [True, True, False, False], labelled=3))
    assert chosen is not None
    threshold, evidence = chosen
    assert threshold == pytest.approx(0.6)
    assert evidence == {"labelled": 3, "found": 2, "false": 0, "f1": pytest.approx(0.8)}


def test_where_nothing_is_found_no_threshold_is_chosen() -> None:
    assert best_threshold(matches([0.9, 0.8], [False, False], labelled=3)) is None
    assert best_threshold(matches([], [], labelled=3)) is None


_RANKED = st.lists(
    st.tuples(st.integers(1, 20).map(lambda n: n / 20), st.booleans()), min_size=1, max_size=20
).map(lambda entries: sorted(entries, key=lambda entry: -entry[0]))


@given(ranked=_RANKED, missed=st.integers(0, 5))
def test_no_other_threshold_has_a_higher_f1(ranked: list[tuple[float, bool]], missed: int) -> None:
    scores, hits = [list(column) for column in zip(*ranked, strict=True)]
    labelled = sum(hits) + missed
    found = matches(scores, hits, labelled)
    chosen = best_threshold(found)
    if not any(hits):
        assert chosen is None
        return
    assert chosen is not None

    def f1(threshold: float) -> float:
        true, false = found.at(threshold)
        return float(2 * true / (labelled + true + false))

    assert f1(chosen[0]) == pytest.approx(chosen[1]["f1"])
    assert f1(chosen[0]) == pytest.approx(max(f1(score) for score in scores))
    assert found.at(chosen[0]) == (chosen[1]["found"], chosen[1]["false"])


def test_recall_is_read_where_false_boxes_keep_to_their_number() -> None:
    found = matches([0.9, 0.8, 0.7, 0.6, 0.5], [True, False, True, False, True], 4, frames=2)
    points = recall_at_false_rates(found, (0.1, 0.5, 1.0))
    assert [point["recall"]["events"] for point in points] == [1, 2, 3]
    assert [point["recall"]["n"] for point in points] == [4, 4, 4]
    assert all(point["recall"]["low"] <= point["recall"]["rate"] for point in points)


def test_boxes_of_one_score_are_reported_together_or_not_at_all() -> None:
    tied = matches([0.9, 0.5, 0.5, 0.5], [True, True, False, False], 2, frames=1)
    (point,) = recall_at_false_rates(tied, (1.0,))
    assert point["recall"]["events"] == 1, "two of the three at 0.5 would be false"


def test_a_class_that_no_frame_shows_has_no_recall() -> None:
    (point,) = recall_at_false_rates(matches([], [], 0), (1.0,))
    assert point["recall"]["rate"] is None
