"""Thresholds rest on calibration frames and say so; rates by frame have exact intervals."""

import numpy as np
import pytest

from data import Frame
from data.instances import VisibleBox
from models import Detections, Pixels
from training.detection_evaluation import (
    choose_box_thresholds,
    evaluate_detections,
    judge_frames,
    trivial_box_baselines,
)

CLASSES = ("pit", "scratch")


class Remembered:
    """A detector that reads its answer off the frame's first pixels: (x, score in percent)."""

    def detections(self, pixels: Pixels) -> Detections:
        x, percent = int(pixels[0, 0, 0]), int(pixels[0, 1, 0])
        count = 1 if percent else 0
        return Detections(
            np.array([[x, 5, x + 10, 15]] * count, np.float32).reshape(-1, 4),
            np.array([percent / 100] * count, np.float32),
            np.zeros(count, np.int64),
        )


def frame(name: str, *, answer: tuple[int, int], pits: tuple[int, ...] = ()) -> Frame:
    pixels = np.zeros((40, 60, 1), np.uint8)
    pixels[0, :2, 0] = answer
    boxes = tuple(VisibleBox("pit", x, 5, 10, 10, 1.0) for x in pits)
    return Frame(name, pixels, np.zeros((40, 60, 2), np.uint8), boxes)


FRAMES = (
    frame("found", answer=(5, 90), pits=(5,)),
    frame("beside", answer=(40, 80), pits=(5,)),
    frame("missed", answer=(0, 0), pits=(5,)),
    frame("overkill", answer=(20, 85)),
    frame("good", answer=(0, 0)),
)


def test_the_operating_point_says_what_it_rests_on() -> None:
    judged = judge_frames(Remembered(), FRAMES, CLASSES)
    point = choose_box_thresholds(judged, CLASSES)
    pit, scratch = point.classes["pit"], point.classes["scratch"]
    assert pit.basis == "calibration"
    assert pit.threshold == pytest.approx((0.9 + 0.85) / 2)
    assert pit.evidence["found"] == 1
    assert pit.evidence["labelled"] == 3
    assert (scratch.basis, scratch.threshold) == ("default", 0.5)
    assert scratch.reason == "none of the 5 calibration frames shows 'scratch'"


def test_a_class_that_is_never_found_keeps_the_default_and_says_so() -> None:
    judged = judge_frames(Remembered(), [FRAMES[1]], CLASSES)
    pit = choose_box_thresholds(judged, CLASSES).classes["pit"]
    assert (pit.basis, pit.threshold) == ("default", 0.5)
    assert pit.reason == "none of the 1 labelled boxes of 'pit' is found"


def test_frames_are_judged_by_what_the_line_would_do_with_them() -> None:
    judged = judge_frames(Remembered(), FRAMES, CLASSES)
    point = choose_box_thresholds(judged[:1], CLASSES)
    metrics = evaluate_detections(judged, CLASSES, point, max_detections=10).metrics
    assert metrics["frames"] == 5
    # A box beside the defect rejects the part all the same.
    assert (metrics["escape"]["events"], metrics["escape"]["n"]) == (1, 3)
    assert (metrics["overkill"]["events"], metrics["overkill"]["n"]) == (1, 2)
    pit = metrics["regions"]["pit"]
    assert (pit["recall"]["events"], pit["recall"]["n"]) == (1, 3)
    assert pit["false_per_frame"] == pytest.approx(2 / 5)
    assert pit["false_per_good_frame"] == pytest.approx(1 / 2)
    rates = [point["false_boxes_a_frame"] for point in pit["recall_at_false_boxes_a_frame"]]
    assert rates == sorted(rates)
    assert metrics["boxes"]["classes"]["scratch"]["ap50"] is None


def test_a_part_is_rejected_if_any_of_its_frames_is() -> None:
    parts = {"found": "a", "missed": "a", "overkill": "b", "good": "b"}
    judged = judge_frames(Remembered(), FRAMES, CLASSES, parts)
    point = choose_box_thresholds(judged[:1], CLASSES)
    by_part = evaluate_detections(judged, CLASSES, point, max_detections=10).metrics["by_part"]
    assert (by_part["parts"], by_part["most_frames"]) == (3, 2)
    assert (by_part["escape"]["events"], by_part["escape"]["n"]) == (0, 2)
    assert (by_part["overkill"]["events"], by_part["overkill"]["n"]) == (1, 1)


def test_other_thresholds_are_told_by_the_rule_that_serving_follows() -> None:
    judged = judge_frames(Remembered(), FRAMES, CLASSES)
    point = choose_box_thresholds(judged, CLASSES)
    figures = evaluate_detections(judged, CLASSES, point, max_detections=10)
    for rung in figures.details["escape_overkill"]:
        escapes = [
            frame
            for frame in judged
            if not frame.is_good
            and not (frame.found.scores >= rung["thresholds"]["pit"] - 1e-6).any()
        ]
        assert rung["frames"]["escape"]["events"] == len(escapes)
    chosen = next(rung for rung in figures.details["escape_overkill"] if rung["is_chosen"])
    assert chosen["frames"]["escape"] == figures.metrics["escape"]
    pit = figures.details["classes"]["pit"]
    assert pit["recall_by_area"][0]["recall"]["n"] == 3
    assert pit["free_response"]["good_frames"] == 2
    recalls = [place["recall"] for place in pit["free_response"]["curve"]]
    assert recalls == sorted(recalls)


def test_a_box_as_large_as_the_frame_is_what_a_model_must_beat() -> None:
    baselines = trivial_box_baselines(FRAMES, CLASSES, max_detections=10)
    assert baselines["whole_frame"]["ap50"] == 0
    full = frame("full", answer=(0, 0))
    everything = Frame("full", full.pixels, full.mask, (VisibleBox("pit", 0, 0, 60, 40, 1.0),))
    assert trivial_box_baselines([everything], CLASSES, max_detections=1)["whole_frame"][
        "ap50"
    ] == pytest.approx(1)
