"""What became of each test frame, and how many defects of each size were found."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import Frame, GoodFrame, Item
from models import ClassThreshold, OperatingPoint
from training.evaluation import evaluate
from training.frame_outcomes import (
    DefectOutcome,
    FrameOutcome,
    OutcomeRecorder,
    defects_found,
    write_outcomes,
)

CLASSES = ("scratch", "pit")
POINT = OperatingPoint(
    classes={"scratch": ClassThreshold(min_area_px=2), "pit": ClassThreshold(threshold=0.8)}
)


class Painted:
    """Answers with what was painted into the frame: 100 is 1."""

    def probabilities(self, pixels: np.ndarray) -> np.ndarray:
        answer: np.ndarray = pixels.transpose(2, 0, 1).astype(np.float32) / 100
        return answer


def drawn(name: str) -> Frame:
    return Frame(name, np.zeros((32, 48, 2), np.uint8), np.zeros((32, 48, 2), np.uint8))


def item(name: str, group: str | None) -> Item:
    return Item(name, name, name, "0" * 64, 48, 32, 1, 8, group, "test", GoodFrame())


def test_each_frame_is_noted_as_the_evaluation_counts_it(tmp_path: Path) -> None:
    found, missed, good = drawn("a.png"), drawn("b.png"), drawn("c.png")
    found.mask[4, 2:40, 0] = 1
    found.pixels[4, 10:12, 0] = 60
    found.mask[20:26, 20:28, 1] = 1
    found.pixels[22, 22, 1] = 70
    missed.mask[1, 1, 1] = 1
    good.pixels[8:10, 8:10, 1] = 90
    recorder = OutcomeRecorder(CLASSES, POINT, [item("a.png", "part 1"), item("b.png", None)])
    metrics = evaluate(Painted(), [found, missed, good], CLASSES, POINT, recorder.add)

    write_outcomes(tmp_path / "test_frames.jsonl", recorder.outcomes)
    first, second, third = [
        json.loads(line) for line in (tmp_path / "test_frames.jsonl").read_text().splitlines()
    ]
    assert (first["group"], second["group"]) == ("part 1", None)
    scratch, pit = first["defects"]
    assert scratch == {
        "class_name": "scratch",
        "area_px": 38,
        "short_side_px": 1.0,
        "found": True,
    }
    assert (pit["area_px"], pit["short_side_px"], pit["found"]) == (48, 6.0, False)
    assert [each["rejected"] for each in (first, second, third)] == [True, False, True]
    assert [each["defective"] for each in (first, second, third)] == [True, True, False]
    assert third["false_regions"] == 1
    assert metrics["escape"]["events"] == 1
    assert metrics["overkill"]["events"] == 1
    pixels = np.sum([each["pixels"] for each in (first, second, third)], axis=0)
    dice = 2 * pixels[0] / (2 * pixels[0] + pixels[1] + pixels[2])
    assert metrics["pixels"]["any"]["dice"] == pytest.approx(dice)


@given(st.lists(st.tuples(st.integers(1, 60), st.booleans()), max_size=40))
def test_every_defect_is_counted_in_one_size_and_sizes_depend_on_labels_alone(
    drawn_defects: list[tuple[int, bool]],
) -> None:
    def outcome(invert: bool) -> FrameOutcome:
        defects = tuple(
            DefectOutcome("pit", 9, float(side), found != invert) for side, found in drawn_defects
        )
        return FrameOutcome("a.png", None, bool(defects), True, (0, 0, 0), 0, defects)

    answer = defects_found([outcome(False)])
    bins, inverted = answer["by_size"], defects_found([outcome(True)])["by_size"]
    assert answer["all"]["n"] == len(drawn_defects)
    assert sum(each["recall"]["n"] for each in bins) == len(drawn_defects)
    assert sum(each["recall"]["events"] for each in bins) == sum(f for _, f in drawn_defects)
    edges = [(each["from_px"], each["below_px"]) for each in bins]
    assert edges == [(each["from_px"], each["below_px"]) for each in inverted]
    assert (edges[0][0], edges[-1][1]) == (None, None)
    if len(edges) > 1:
        assert all(each["recall"]["n"] > 0 for each in bins)
