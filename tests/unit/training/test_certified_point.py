"""An operating point proves what was asked, or says what is missing."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from data import Frame
from models import ClassThreshold, OperatingPoint, find_defects
from models.certificate import EscapeConstraint
from models.certified_point import certified_point
from models.part_scores import AREAS_PX
from training.part_scores import PartScorer
from training.report.wording import caveats, say_certificate, unproven_escapes

SIDE_PX = 24
BEFORE = OperatingPoint(
    classes={"pit": ClassThreshold(threshold=0.7, basis="calibration", evidence={"frames": 3})}
)


class Brightness:
    """A model that takes brightness for the probability of a defect."""

    def probabilities(self, pixels: Any) -> Any:
        return (pixels[None, :, :, 0] / np.float32(255)).astype(np.float32)


def frames(defective: int, good: int, seed: int = 0) -> Iterator[Frame]:
    """Pits are bright squares, noise is single bright pixels."""
    generator = np.random.default_rng(seed)
    for index in range(defective + good):
        pixels = generator.integers(0, 60, (SIDE_PX, SIDE_PX, 1), dtype=np.uint8)
        y, x = generator.integers(0, SIDE_PX, 2)
        pixels[y, x] = generator.integers(120, 256)
        mask = np.zeros((SIDE_PX, SIDE_PX, 1), np.uint8)
        if index < defective:
            y, x = generator.integers(0, SIDE_PX - 5, 2)
            pixels[y : y + 5, x : x + 5] = generator.integers(80, 200)
            mask[y : y + 5, x : x + 5] = 1
        yield Frame(f"frame-{index}", pixels, mask)


def proven_point(
    calibration: Iterator[Frame],
    constraint: EscapeConstraint,
    parts: Mapping[str, str] = MappingProxyType({}),
) -> OperatingPoint:
    """As a run chooses it."""
    scorer = PartScorer(("pit",), parts)
    for frame in calibration:
        scorer.add(frame, Brightness().probabilities(frame.pixels))
    return certified_point(BEFORE, scorer.parts(), lambda _: constraint)


def judged(point: OperatingPoint, defective: int, good: int, seed: int) -> tuple[float, float]:
    """Escape and overkill of other frames of the same kind."""
    rejected = {True: 0, False: 0}
    for frame in frames(defective, good, seed):
        probabilities = Brightness().probabilities(frame.pixels)
        found, _ = find_defects(probabilities, ["pit"], point)
        rejected[bool(frame.mask.any())] += bool(found)
    return 1 - rejected[True] / defective, rejected[False] / good


def test_what_is_proven_holds_on_other_parts_and_small_noise_is_passed() -> None:
    constraint = EscapeConstraint(max_escape=0.1)
    point = proven_point(frames(150, 60), constraint)

    chosen = point.classes["pit"]
    told = chosen.evidence["certificate"]
    assert told["is_proven"]
    assert told["bound"] <= 0.1
    # A noisy pixel is brighter than many pits, so only an area tells them apart.
    assert chosen.min_area_px in AREAS_PX
    assert chosen.min_area_px > 1
    escape, overkill = judged(point, 1000, 400, seed=1)
    assert escape <= 0.1
    assert overkill == 0
    assert told["false_alarms"] == 0
    assert unproven_escapes(point) == []
    assert "Proven on 150 calibration parts" in say_certificate("pit", told)


def test_a_few_parts_keep_their_threshold_and_say_how_many_more_it_takes() -> None:
    constraint = EscapeConstraint(max_escape=0.01)
    point = proven_point(frames(20, 5), constraint)

    chosen = point.classes["pit"]
    assert (chosen.threshold, chosen.min_area_px) == (0.7, 1)
    told = chosen.evidence["certificate"]
    assert not told["is_proven"]
    # log(0.01) / log(0.99), since five areas share the five percent.
    assert told["missing_parts"] == 459 - 20
    (sentence,) = unproven_escapes(point)
    assert "439 more" in sentence


def test_frames_of_one_part_count_once() -> None:
    constraint = EscapeConstraint(max_escape=0.5)
    parts = {f"frame-{index}": f"part-{index // 2}" for index in range(60)}
    point = proven_point(frames(40, 20), constraint, parts)

    told = point.classes["pit"].evidence["certificate"]
    assert (told["defective_parts"], told["good_parts"]) == (20, 10)


def test_a_class_that_no_part_shows_stays_as_it_is() -> None:
    constraint = EscapeConstraint(max_escape=0.5)
    point = proven_point(frames(0, 20), constraint)
    assert point == BEFORE


@pytest.mark.parametrize("proven", [True, False])
def test_the_sentence_states_what_was_asked_and_on_what_evidence(proven: bool) -> None:
    certificate = {
        "max_escape": 0.01,
        "confidence": 0.95,
        "is_proven": proven,
        "bound": 0.0098 if proven else 0.12,
        "escapes": 1,
        "defective_parts": 473 if proven else 25,
        "false_alarms": 3,
        "good_parts": 90,
        "missing_parts": 0 if proven else 434,
    }
    said = say_certificate("pit", certificate)
    assert "1.0 %" in said
    assert "95.0 % confidence" in said
    assert ("0.98 %" in said) == proven
    assert ("434 more" in said) != proven


def test_only_classes_without_a_proof_are_said_to_guarantee_nothing() -> None:
    rates = {"escape": {"n": 0}, "overkill": {"n": 0}, "regions": {}, "by_part": {}}
    classes = {
        name: {"basis": "calibration", "evidence": {"certificate": {"is_proven": name == "pit"}}}
        for name in ("pit", "dent")
    }
    said = caveats({"metrics": rates, "operating_point": {"classes": classes}})
    (sentence,) = [each for each in said if "guaranteed" in each]
    assert "dent" in sentence
    assert "pit" not in sentence
