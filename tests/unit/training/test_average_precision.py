"""Average precision is what its definition says, by class and with nothing to be found."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import Frame
from data.instances import VisibleBox
from models import Detections
from training.average_precision import (
    JudgedFrame,
    LabelledBoxes,
    average_precision,
    labelled_boxes,
)
from training.box_matches import intersection_over_union

Sides = tuple[int, int, int, int]


def judged(found: list[tuple[Sides, float, int]], labelled: list[tuple[Sides, int]]) -> JudgedFrame:
    order = sorted(found, key=lambda entry: -entry[1])
    return JudgedFrame(
        Detections(
            np.array([box for box, _, _ in order], np.float32).reshape(-1, 4),
            np.array([score for _, score, _ in order], np.float32),
            np.array([index for _, _, index in order], np.int64),
        ),
        LabelledBoxes(
            np.array([box for box, _ in labelled], np.float32).reshape(-1, 4),
            np.array([index for _, index in labelled], np.int64),
        ),
    )


def slow_average_precision(frames: list[JudgedFrame], class_index: int, overlap: float) -> float:
    """Match box by box, then read the interpolated precision at 101 recalls."""
    ranked: list[tuple[float, bool]] = []
    labelled_count = 0
    for frame in frames:
        labelled = [
            box
            for box, index in zip(frame.labelled.boxes, frame.labelled.classes, strict=True)
            if index == class_index
        ]
        labelled_count += len(labelled)
        taken = [False] * len(labelled)
        for box, score, index in zip(
            frame.found.boxes, frame.found.scores, frame.found.classes, strict=True
        ):
            if index != class_index:
                continue
            best, best_overlap = -1, overlap
            for place, other in enumerate(labelled):
                shared = float(intersection_over_union(box[None], other[None])[0, 0])
                if not taken[place] and shared >= best_overlap:
                    best, best_overlap = place, shared
            if best >= 0:
                taken[best] = True
            ranked.append((float(score), best >= 0))
    ranked.sort(key=lambda entry: -entry[0])
    hits = 0
    points: list[tuple[float, float]] = []
    for count, (_, hit) in enumerate(ranked, 1):
        hits += hit
        points.append((hits / labelled_count, hits / count))
    reached = [
        max((precision for recall, precision in points if recall >= level / 100), default=0.0)
        for level in range(101)
    ]
    return sum(reached) / 101


_SIDES = st.tuples(
    st.integers(0, 20), st.integers(0, 20), st.integers(1, 12), st.integers(1, 12)
).map(lambda s: (s[0], s[1], s[0] + s[2], s[1] + s[3]))
# Distinct scores: among equal ones the order of matching is the library's own.
_FRAME = st.tuples(
    st.lists(st.tuples(_SIDES, st.integers(0, 1)), max_size=5),
    st.lists(st.tuples(_SIDES, st.integers(0, 1)), max_size=4),
)


@settings(deadline=None, max_examples=60)
@given(frames=st.lists(_FRAME, min_size=1, max_size=4), seed=st.integers(0, 1000))
def test_average_precision_is_what_matching_box_by_box_gives(
    frames: list[tuple[list[tuple[Sides, int]], list[tuple[Sides, int]]]], seed: int
) -> None:
    count = sum(len(found) for found, _ in frames)
    scores = iter((np.random.default_rng(seed).permutation(count) + 1) / (count + 1))
    truth = [
        judged([(box, float(next(scores)), index) for box, index in found], labelled)
        for found, labelled in frames
    ]
    answer = average_precision(truth, ("pit", "scratch"), max_detections=100)["classes"]
    for index, name in enumerate(("pit", "scratch")):
        if answer[name]["labelled"] == 0:
            assert answer[name]["ap50"] is None
        else:
            expected = slow_average_precision(truth, index, 0.5)
            assert answer[name]["ap50"] == pytest.approx(expected, abs=1e-6)


def test_boxes_that_are_right_have_an_average_precision_of_one_at_every_overlap() -> None:
    frame = judged([((2, 3, 12, 9), 0.7, 0)], [((2, 3, 12, 9), 0)])
    answer = average_precision([frame], ("pit", "scratch"), max_detections=10)
    pit = answer["classes"]["pit"]
    assert (pit["ap50"], pit["ap50_95"]) == (pytest.approx(1), pytest.approx(1))
    assert pit["labelled"] == 1
    assert answer["classes"]["scratch"] == {"ap50": None, "ap50_95": None, "labelled": 0}
    assert answer["ap50"] == pit["ap50"], "a class that is not to be seen has no part in the mean"


def test_a_box_that_is_a_little_off_counts_at_the_looser_overlaps_alone() -> None:
    # 10x10 px moved by 2 px: they share 80 of 120 px, two thirds.
    frame = judged([((2, 0, 12, 10), 0.7, 0)], [((0, 0, 10, 10), 0)])
    answer = average_precision([frame], ("pit",), max_detections=10)
    assert answer["ap50"] == pytest.approx(1)
    assert answer["ap50_95"] == pytest.approx(4 / 10)


def test_nothing_found_is_zero_and_nothing_labelled_is_no_score(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert (
        average_precision([judged([], [((0, 0, 5, 5), 0)])], ("pit",), max_detections=10)["ap50"]
        == 0.0
    )
    assert average_precision([judged([], [])], ("pit",), max_detections=10)["ap50"] is None
    assert capsys.readouterr().out == "", "the run's log is not the library's"


def test_a_frame_s_boxes_reach_to_the_far_side_of_their_last_pixel() -> None:
    box = VisibleBox("scratch", x=3, y=4, width=5, height=1, visible_share=1.0)
    pixels = np.zeros((10, 10, 1), np.uint8)
    frame = Frame("a", pixels, np.zeros((10, 10, 2), np.uint8), (box,))
    labelled = labelled_boxes(frame, ("pit", "scratch"))
    assert labelled.boxes.tolist() == [[3, 4, 8, 5]]
    assert labelled.classes.tolist() == [1]
    clean = labelled_boxes(Frame("b", pixels, frame.mask, ()), ("pit", "scratch"))
    assert clean.boxes.shape == (0, 4)
