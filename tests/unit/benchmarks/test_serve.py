"""The judge of the load lets no wrong answer pass, and the latency's parts add up."""

import hashlib
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.special import expit, logit

from benchmarks.serve.busy import measure_busy
from benchmarks.serve.expected_answers import DefectBounds, ExpectedAnswer, expected_answer
from benchmarks.serve.judged_exchanges import (
    Exchange,
    Outcome,
    Switch,
    could_serve,
    judge,
    repeated_requests,
)
from benchmarks.serve.latency import QUICK, section, split_time
from benchmarks.serve.page import PAGE
from benchmarks.serve.resident_memory import trend
from benchmarks.serve.sent_frames import as_sent
from benchmarks.serve.shown_frames import SHOWN, shown_frames
from models import ClassThreshold, Inspection, OperatingPoint, find_defects

CLASSES = ("pit", "scratch")
POINT = OperatingPoint(
    classes={"pit": ClassThreshold(threshold=0.3, min_area_px=4), "scratch": ClassThreshold()}
)
TOLERANCE = 1e-3


def blobs(*places: tuple[int, int, int, float]) -> Any:
    """Probabilities with smooth hills at (class, x, y) of a height in logits."""
    y, x = np.mgrid[:64, :96]
    logits = np.full((2, 64, 96), -6.0)
    for index, left, top, height in places:
        hill = height * np.exp(-((x - left) ** 2 + (y - top) ** 2) / 40) - 6
        logits[index] = np.maximum(logits[index], hill)
    return expit(logits).astype(np.float32)


class _Direct:
    """A model whose probabilities are given."""

    def __init__(self, probabilities: Any) -> None:
        self.probabilities = probabilities
        self.info = self
        self.classes, self.operating_point = CLASSES, POINT

    def inspect(self, _pixels: Any) -> Inspection:
        defects, _ = find_defects(self.probabilities, CLASSES, POINT)
        verdict: Any = "NG" if defects else "OK"
        return Inspection(verdict, defects, self.probabilities, (), {})


def expected_of(probabilities: Any) -> ExpectedAnswer:
    direct: Any = _Direct(probabilities)
    answer = expected_answer(direct, np.zeros((64, 96), np.uint8), TOLERANCE)
    assert answer is not None
    return answer


def told(probabilities: Any, model: str = "mdl_a") -> dict[str, Any]:
    """What a service with these probabilities answers."""
    inspection = _Direct(probabilities).inspect(None)
    return {
        "verdict": inspection.verdict,
        "defects": [
            {
                "class": one.class_name,
                "score": one.score,
                "box": list(one.box),
                "area_px": one.area_px,
            }
            for one in inspection.defects
        ],
        "image": {"sha256": "f" * 64},
        "model": {"id": model},
        "ledger_sequence": 1,
        "warnings": [],
        "request_id": "req_1",
    }


HILLS = blobs((0, 20, 20, 9.0), (0, 70, 40, 8.0), (1, 40, 30, 11.0))
OTHERS = blobs((0, 20, 20, 8.0), (0, 70, 40, 8.0), (1, 44, 30, 11.0))


@pytest.mark.parametrize("seed", range(5))
def test_another_runtimes_rounding_is_right(seed: int) -> None:
    rounding = np.random.default_rng(seed).uniform(-TOLERANCE, TOLERANCE, HILLS.shape)
    answer = told(expit(logit(HILLS.astype(np.float64)) + rounding).astype(np.float32))
    assert expected_of(HILLS).holds(answer)


@pytest.mark.parametrize(
    ("place", "value"),
    [("score", 0.5), ("box", [0, 0, 9, 9]), ("area_px", 3), ("class", "stain")],
)
def test_an_answer_that_differs_in_one_thing_is_wrong(place: str, value: Any) -> None:
    answer = told(HILLS)
    answer["defects"][1][place] = value
    assert not expected_of(HILLS).holds(answer)


def test_a_defect_too_many_or_too_few_or_another_verdict_is_wrong() -> None:
    expected, answer = expected_of(HILLS), told(HILLS)
    defects = answer["defects"]
    assert expected.holds(answer)
    assert not expected.holds({**answer, "defects": defects[:-1]})
    assert not expected.holds({**answer, "defects": [*defects, defects[0]]})
    assert not expected.holds({**answer, "defects": [defects[0], *defects[:-1]]})
    assert not expected.holds({**answer, "verdict": "OK"})


def test_a_frame_whose_answer_hangs_on_rounding_is_not_used() -> None:
    # One pixel of a scratch is a hair above one half, which is six above the ground in logits.
    at_threshold: Any = _Direct(blobs((1, 20, 20, 6 + 1e-4)))
    assert expected_answer(at_threshold, np.zeros((64, 96), np.uint8), TOLERANCE) is None


def test_models_are_told_apart_by_what_they_say() -> None:
    one, two = expected_of(HILLS), expected_of(OTHERS)
    assert one.is_told_from(two)
    assert two.is_told_from(one)
    assert not one.is_told_from(one)
    assert not ExpectedAnswer("OK", ()).is_told_from(ExpectedAnswer("OK", ()))


def test_bounds_meet_where_one_defect_could_be_within_both() -> None:
    bounds = DefectBounds("pit", (0.5, 0.6), (2, 2, 4, 4), (1, 1, 5, 5), (4, 9))
    assert bounds.meet(replace(bounds, scores=(0.6, 0.7), inner=(1, 1, 4, 4)))
    assert not bounds.meet(replace(bounds, scores=(0.61, 0.7)))
    assert not bounds.meet(replace(bounds, inner=(10, 10, 12, 12), outer=(9, 9, 13, 13)))


EXPECTED = {"mdl_a": expected_of(HILLS), "mdl_b": expected_of(OTHERS)}
RIGHT = told(HILLS)


@pytest.mark.parametrize(
    ("status", "changes", "took_s", "outcome"),
    [
        (200, {}, 0.1, "right"),
        (200, told(OTHERS, "mdl_b"), 0.1, "mixed"),
        (200, {"image": {"sha256": "e" * 64}}, 0.1, "mixed"),
        (200, {"defects": told(OTHERS)["defects"]}, 0.1, "mixed"),
        (200, {"defects": []}, 0.1, "wrong"),
        (200, {"verdict": "NOT_INSPECTED", "defects": []}, 0.1, "not inspected"),
        (200, {"ledger_sequence": None}, 0.1, "not recorded"),
        (200, {}, 0.31, "late"),
        (503, {"code": "inference_busy"}, 0.1, "refused for now"),
        (500, {"code": "internal"}, 0.1, "server error"),
        (422, {"code": "image_damaged"}, 0.1, "other error"),
        (None, {}, 0.1, "lost"),
    ],
)
def test_every_fault_has_its_name(
    status: int | None, changes: dict[str, Any], took_s: float, outcome: Outcome
) -> None:
    exchange = Exchange(0, 5.0, 5.0 + took_s, status, {**RIGHT, **changes})
    assert judge(exchange, EXPECTED, "f" * 64, {"mdl_a"}, latest_ms=300)[0] == outcome


def test_a_model_may_serve_from_its_asking_until_the_next_ones_confirmation() -> None:
    switches = [Switch("a", 0, 1), Switch("b", 10, 12), Switch("a", 20, 21)]
    assert could_serve(switches, 2, 9) == {"a"}
    assert could_serve(switches, 2, 10) == {"a", "b"}
    assert could_serve(switches, 11, 12.5) == {"a", "b"}
    assert could_serve(switches, 12.1, 19) == {"b"}
    assert could_serve(switches, 21.5, 22) == {"a"}


def test_an_identifier_given_twice_is_counted() -> None:
    exchange = Exchange(0, 0, 1, 200, {"request_id": "req_1"})
    others = [replace(exchange, answer={"request_id": "req_2"}), replace(exchange, status=503)]
    assert repeated_requests([exchange, *others]) == 0
    assert repeated_requests([exchange, exchange, *others]) == 1


def test_the_parts_of_an_answers_time_add_up() -> None:
    timings = {"decode": 20.0, "queue": 1.0, "model": 900.0, "postprocess": 4.0, "total": 930.0}
    parts = split_time(933.0, timings)
    assert parts["overhead"] == pytest.approx(13.0)
    assert parts["rest"] == pytest.approx(5.0)
    assert parts["http"] == pytest.approx(3.0)
    stages = ("decode", "queue", "model", "postprocess", "rest", "http")
    assert sum(parts[name] for name in stages) == pytest.approx(parts["total"])


def test_a_trend_leaves_the_warm_up_out_and_finds_the_slope() -> None:
    mebibyte = 1024**2
    samples = [(float(s), mebibyte * (100 + (0 if s < 60 else s / 30))) for s in range(240)]
    line = trend(samples, after_s=60)
    assert line is not None
    assert line.slope_mib_a_minute == pytest.approx(2.0)
    assert line.samples == 180
    assert trend(samples, after_s=238) is None


@pytest.mark.parametrize("encoding", ["PNG", "Mono8", "RGB8"])
def test_what_is_sent_is_what_was_drawn(encoding: str) -> None:
    shape = (48, 64, 3) if encoding == "RGB8" else (48, 64)
    pixels = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    sent = as_sent(pixels, encoding)
    np.testing.assert_array_equal(sent.pixels(), pixels)
    assert hashlib.sha256(sent.body).digest() == hashlib.sha256(sent.raw).digest()


def test_the_page_names_what_was_not_measured() -> None:
    assert PAGE.render({}).count("Not measured") == len(PAGE.titles)


def test_frames_with_few_and_with_many_defects_are_told_apart() -> None:
    times = {"decode": 1.0, "model": 10.0, "postprocess": 2.0, "total": 14.0}
    answers = [
        {
            "shown": shown,
            "service": split_time(15.0 + count, times),
            "verdict": "NG" if count else "OK",
            "defects": count,
            "engine": "torch-fp32",
            "bytes": 1000,
            "nothing_ms": 1.0,
        }
        for shown, count in zip(SHOWN, (0, 3, 40), strict=True)
    ]
    told = section({"JPEG": answers * 2}, QUICK, rounds=6)
    assert [row[:2] for row in told["rows"]] == [
        ["JPEG, good", "0"],
        ["JPEG, few defects", "3"],
        ["JPEG, many defects", "40"],
    ]
    assert (
        "good: JPEG 4.0 ms; few defects: JPEG 7.0 ms; many defects: JPEG 44.0 ms"
        in told["notes"][1]
    )


def test_a_crowded_frame_shows_the_defects_of_a_dozen_others() -> None:
    frames = shown_frames(320, 256)
    assert [*frames] == [*SHOWN]
    differs = frames["many defects"] != frames["good"]
    assert 0.01 < differs.mean() < 0.9


def test_a_busy_thread_is_measured_at_both_intervals_and_the_programs_own_is_put_back() -> None:
    before_s = sys.getswitchinterval()
    measured = measure_busy(quick=True)
    assert sys.getswitchinterval() == before_s
    assert [row[0] for row in measured["rows"]] == ["5 ms", "0.1 ms"]
    assert all(len(times) == 2 for times in measured["times_ms"].values())
