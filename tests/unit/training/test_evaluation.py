"""Thresholds are chosen on calibration frames and judged on others; denominators are stated."""

import pickle

import numpy as np
import pytest
from numpy.typing import NDArray

from data import Frame
from models import ClassThreshold, OperatingPoint, Pixels
from training.baselines import trivial_baselines
from training.errors import TrainingError
from training.evaluation import choose_operating_point, evaluate, judge
from training.gallery import Gallery
from training.regions import drop_small_regions

CLASSES = ("pit", "scratch")


class BrightnessModel:
    """Takes brightness for the probability of a pit and never sees a scratch."""

    def __init__(self) -> None:
        self.asked = 0

    def probabilities(self, pixels: Pixels) -> NDArray[np.float32]:
        self.asked += 1
        pit = pixels[:, :, 0].astype(np.float32) / 255
        return np.stack([pit, np.zeros_like(pit)])


def frame(name: str, pit: int = 0, speck: int = 0) -> Frame:
    """A dark frame with a 6x6 pit of that brightness, and a bright pixel that is none."""
    pixels = np.full((40, 50, 1), 20, np.uint8)
    mask = np.zeros((40, 50, 2), np.uint8)
    if pit:
        pixels[10:16, 10:16] = pit
        mask[10:16, 10:16, 0] = 1
    if speck:
        pixels[30, 40] = speck
    return Frame(name, pixels, mask)


CALIBRATION = [frame("a", pit=200), frame("b", pit=180, speck=220), frame("c", speck=220)]


def chosen() -> OperatingPoint:
    return choose_operating_point(BrightnessModel(), lambda: CALIBRATION, CLASSES)


def test_the_threshold_parts_defects_from_background_and_the_area_drops_specks() -> None:
    pit = chosen().classes["pit"]
    assert pit.basis == "calibration"
    assert 20 / 255 < pit.threshold <= 180 / 255
    assert pit.min_area_px > 1
    assert (pit.evidence["labelled"], pit.evidence["found"], pit.evidence["false"]) == (2, 2, 0)


def test_a_class_without_calibration_defects_says_so_instead_of_guessing() -> None:
    scratch = chosen().classes["scratch"]
    assert scratch.basis == "default"
    assert scratch.threshold == 0.5
    assert scratch.reason == "none of the 3 calibration frames shows 'scratch'"


def test_rates_name_their_denominators() -> None:
    point = chosen()
    frames = [
        frame("found", pit=200),
        frame("escaped", pit=30),
        frame("good"),
        frame("speck", speck=255),
    ]
    metrics = evaluate(BrightnessModel(), frames, CLASSES, point)
    assert metrics["frames"] == 4
    assert (metrics["escape"]["events"], metrics["escape"]["n"]) == (1, 2)
    assert (metrics["overkill"]["events"], metrics["overkill"]["n"]) == (0, 2)
    recall = metrics["regions"]["pit"]["recall"]
    assert (recall["events"], recall["n"]) == (1, 2)
    assert metrics["pixels"]["any"]["dice"] == pytest.approx(2 * 36 / (36 + 72))
    assert metrics["pixels"]["scratch"]["dice"] is None
    assert metrics["regions"]["scratch"]["recall"]["rate"] is None


def test_a_rejected_good_frame_is_overkill() -> None:
    loud = OperatingPoint(
        classes={"pit": ClassThreshold(threshold=0.01), "scratch": ClassThreshold()}
    )
    metrics = evaluate(BrightnessModel(), [frame("good")], CLASSES, loud)
    assert (metrics["overkill"]["events"], metrics["overkill"]["n"]) == (1, 1)
    assert metrics["escape"]["n"] == 0


def test_each_test_frame_is_looked_at_once_and_told_to_whoever_asks() -> None:
    model = BrightnessModel()
    told: list[str] = []
    judge(model, CALIBRATION, CLASSES, chosen(), tell=lambda frame, _: told.append(frame.name))
    assert model.asked == len(CALIBRATION)
    assert told == ["a", "b", "c"]


def test_what_is_kept_does_not_grow_with_the_number_of_frames() -> None:
    def kept_bytes(repeats: int) -> int:
        frames = [frame("n", pit=200, speck=220), frame("n"), frame("n", pit=90)] * repeats
        parts = {"n": "the only part"}
        judgement = judge(BrightnessModel(), frames, CLASSES, chosen(), parts=parts)
        judgement.gallery = Gallery()
        return len(pickle.dumps(judgement))

    # The numbers themselves get longer, by some bytes each.
    assert kept_bytes(40) < kept_bytes(2) + 100


def test_probabilities_that_are_no_numbers_are_refused_with_the_frame_that_gave_them() -> None:
    class Overflowing(BrightnessModel):
        def probabilities(self, pixels: Pixels) -> NDArray[np.float32]:
            return super().probabilities(pixels) * np.float32("nan")

    with pytest.raises(TrainingError, match="answers a with") as caught:
        judge(Overflowing(), CALIBRATION, CLASSES, chosen())
    assert caught.value.code == "probabilities_not_finite"


def test_one_class_is_the_same_as_any_class() -> None:
    class PitsAlone(BrightnessModel):
        def probabilities(self, pixels: Pixels) -> NDArray[np.float32]:
            return super().probabilities(pixels)[:1]

    frames = [Frame(each.name, each.pixels, each.mask[:, :, :1]) for each in CALIBRATION]
    point = OperatingPoint(classes={"pit": chosen().classes["pit"]})
    metrics = judge(PitsAlone(), frames, ("pit",), point).metrics()
    both = judge(BrightnessModel(), CALIBRATION, CLASSES, chosen()).metrics()
    assert metrics["pixels"]["any"] == metrics["pixels"]["pit"] == both["pixels"]["any"]


def test_the_worst_come_first_in_the_gallery_and_a_wrong_class_is_named() -> None:
    gallery = Gallery()
    mislabelled = frame("wrong class", pit=230)
    mislabelled.mask[:, :, 1], mislabelled.mask[:, :, 0] = mislabelled.mask[:, :, 0].copy(), 0
    frames = [frame("found", pit=200), frame("dim", pit=60), frame("dimmer", pit=30), mislabelled]
    judge(BrightnessModel(), frames, CLASSES, chosen(), gallery=gallery)
    misses = [finding for finding, _ in gallery.worst("miss")]
    names = [(finding.frame, finding.is_wrong) for finding in misses]
    assert names == [("wrong class", True), ("dimmer", True), ("dim", True), ("found", False)]
    assert misses[0].score == 0
    alarms = [finding for finding, _ in gallery.worst("false_alarm")]
    assert [(each.frame, each.labelled_as) for each in alarms] == [("wrong class", ("scratch",))]


def test_small_regions_are_dropped_whole() -> None:
    reported = np.zeros((20, 20), np.bool_)
    reported[2:4, 2:4] = True
    reported[10:14, 10:14] = True
    assert drop_small_regions(reported, 1).sum() == 20
    assert drop_small_regions(reported, 5).sum() == 16
    assert drop_small_regions(reported, 17).sum() == 0


def test_baselines_are_what_needs_no_training() -> None:
    judged = [frame("x", pit=210), frame("y")]
    baselines = trivial_baselines(CALIBRATION, judged)
    share = 36 / (2 * 40 * 50)
    assert baselines["all_background"]["dice"] == 0
    assert baselines["all_foreground"]["dice"] == pytest.approx(2 * share / (1 + share))
    assert baselines["brightness_threshold"]["direction"] == "brighter"
    assert baselines["brightness_threshold"]["dice"] == 1
