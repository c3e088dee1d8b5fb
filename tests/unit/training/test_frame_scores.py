"""Mean, median and worst of one score a frame, without keeping the scores."""

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.frame_scores import RESOLUTION, FrameScores


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_the_summary_is_that_of_all_scores(scores: list[float]) -> None:
    kept = FrameScores()
    for index, score in enumerate(scores):
        kept.add(score, f"frame {index}")
    summary = kept.summary()
    assert summary["n"] == len(scores)
    assert summary["mean"] == pytest.approx(statistics.fmean(scores))
    assert abs(summary["median"] - statistics.median_low(scores)) <= RESOLUTION / 2 + 1e-9
    assert summary["worst"] == min(scores)
    assert summary["worst_frame"] == f"frame {scores.index(min(scores))}"


def test_no_frame_has_no_score() -> None:
    assert FrameScores().summary()["mean"] is None
