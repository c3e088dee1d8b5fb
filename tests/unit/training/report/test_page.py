"""The page says what the test frames support, shows it, and trusts no name."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from data import Frame
from models import ClassThreshold, OperatingPoint, Pixels
from training.baselines import trivial_baselines
from training.evaluation import judge
from training.report.__main__ import main
from training.report.blocks import RunRecord
from training.report.page import render_page
from training.report.run_sections import averaged, curve_points
from training.report.wording import statements, unsupported_figures
from training.run_directory import RunDirectory

HOSTILE = "<script>alert('pit')</script>"
HOSTILE_FRAME = '"><img src=x onerror=alert(1)>.png'


SUMMARY = {
    "steps": 29,
    "epochs": 2,
    "seconds": 150.0,
    "ended_by": "max_minutes",
    "best_epoch": 2,
    "calibration_dice": 0.5,
    "batch_size": 2,
}


class Brightness:
    """Takes brightness for the probability of the first class and never sees the second."""

    def probabilities(self, pixels: Pixels) -> NDArray[np.float32]:
        first = pixels[:, :, 0].astype(np.float32) / 255
        return np.stack([first, np.zeros_like(first)])


def frame(name: str, *, pit: int = 0, speck: int = 0) -> Frame:
    pixels = np.full((60, 70, 1), 20, np.uint8)
    mask = np.zeros((60, 70, 2), np.uint8)
    if pit:
        pixels[10:16, 10:19] = pit
        mask[10:16, 10:19, 0] = 1
    if speck:
        pixels[40:44, 50:54] = speck
    return Frame(name, pixels, mask)


DEFECTIVE = [frame(HOSTILE_FRAME, pit=60), frame("b", pit=200), frame("c", pit=210)]
GOOD = [frame("d", speck=230), frame("e"), frame("f")]


def record_of(
    frames: list[Frame],
    run: RunDirectory,
    classes: tuple[str, str] = (HOSTILE, "scratch"),
    **more: Any,
) -> RunRecord:
    point = OperatingPoint(
        classes={
            classes[0]: ClassThreshold(basis="calibration", evidence={"frames": 3}),
            classes[1]: ClassThreshold(reason=f"none of the 3 frames shows {classes[1]!r}"),
        }
    )
    parts = {"b": "one", "c": "one", "e": "two", "f": "two"}
    judgement = judge(Brightness(), frames, classes, point, parts=parts)
    run.path.mkdir(exist_ok=True)
    metrics = judgement.metrics()
    report = {
        "metrics": metrics,
        "evaluation": {**judgement.details(), "gallery": judgement.gallery.write(run.gallery)},
        "statements": statements(metrics),
        "unsupported": unsupported_figures(metrics),
        "operating_point": point.model_dump(mode="json"),
        "baselines": trivial_baselines(frames, frames),
        "training": SUMMARY,
        **more,
    }
    events = [
        {"kind": "metrics", "step": step, "values": {"loss": 1 / step}} for step in range(1, 30)
    ]
    warning = {"kind": "warning", "code": "x", "detail": f"{HOSTILE} stays as it is"}
    pictures = {path.name: path.read_bytes() for path in run.gallery.glob("*.webp")}
    return RunRecord(json.loads(json.dumps(report)), [*events, warning, warning], pictures)


class Tags(HTMLParser):
    """Every element with its attributes, and all text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "run")


def test_names_stay_text_and_the_page_needs_nothing_beside_it(run: RunDirectory) -> None:
    page = render_page(record_of([*DEFECTIVE, *GOOD], run))
    read = Tags(page)
    assert not [tag for tag, _ in read.tags if tag in {"script", "link", "iframe", "object"}]
    for _, attributes in read.tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert HOSTILE in read.text
    assert HOSTILE_FRAME in read.text
    assert not re.search(r"url\(|@import", page)


def test_the_page_shows_both_galleries_and_every_plot(run: RunDirectory) -> None:
    read = Tags(render_page(record_of([*DEFECTIVE, *GOOD], run)))
    pictures = [attributes for tag, attributes in read.tags if tag == "img"]
    assert len(pictures) == len(list(run.gallery.glob("*.webp"))) > 0
    assert any(HOSTILE_FRAME in (each["alt"] or "") for each in pictures)
    plots = [each for tag, each in read.tags if tag == "svg" and each.get("class") == "plot"]
    # Escape and overkill twice, detection by size, FROC, precision and recall twice, the loss.
    assert len(plots) == 7
    assert "time limit reached" in read.text
    assert "missed" in read.text
    assert "false alarm" in read.text
    assert "stays as it is (2 times)" in read.text


def test_parts_are_told_beside_frames(run: RunDirectory) -> None:
    record = record_of([*DEFECTIVE, *GOOD], run)
    assert record.metrics["escape"]["n"] == 3
    assert record.metrics["by_part"]["escape"]["n"] == 2
    said = " ".join(record.report["statements"])
    assert "of the defective parts, 1 of 2 was called OK" in said
    assert "of the good parts, 1 of 2 was called NG" in said


@pytest.mark.parametrize(
    ("frames", "lacking", "plot"),
    [
        (DEFECTIVE, "No test frame is good", "escape by threshold"),
        (GOOD, "No test frame shows a defect", "overkill by threshold"),
    ],
)
def test_what_the_frames_do_not_support_is_said_and_no_figure_takes_its_place(
    run: RunDirectory, frames: list[Frame], lacking: str, plot: str
) -> None:
    record = record_of(frames, run)
    assert any(text.startswith(lacking) for text in record.report["unsupported"])
    read = Tags(render_page(record))
    assert lacking in read.text
    assert "not known: there is none to judge by" in read.text
    assert "escape against overkill" not in read.text
    assert plot in read.text


def test_no_miss_is_told_with_what_it_may_still_be(run: RunDirectory) -> None:
    record = record_of(DEFECTIVE[1:], run)
    text = " ".join(record.report["statements"])
    # Clopper-Pearson without an event: 1 - 0.025 ** (1 / n).
    assert "0 of 2 were called OK; the true rate may be up to 84.2 %" in text
    assert not re.search(r"\b0(\.0+)? %", text)


def test_a_report_of_another_task_is_drawn_without_the_sections_it_lacks() -> None:
    page = render_page(RunRecord({"metrics": {"average_precision": 0.4}}, [], {}))
    assert "<h2>" not in page


def test_a_report_from_before_curves_were_kept_is_drawn_as_far_as_it_goes(
    run: RunDirectory,
) -> None:
    record = record_of([*DEFECTIVE, *GOOD], run)
    old = {name: record.report[name] for name in ("metrics", "operating_point", "baselines")}
    old["metrics"] = {name: old["metrics"][name] for name in old["metrics"] if name != "by_part"}
    page = render_page(RunRecord(old, [], {}))
    assert "Escape and overkill" in page
    assert "Worst misses" not in page


def test_the_page_is_written_whole_from_the_run_directory(run: RunDirectory) -> None:
    record = record_of([*DEFECTIVE, *GOOD], run)
    run.report.write_text(json.dumps(record.report))
    run.events.write_text("".join(json.dumps(event) + "\n" for event in record.events))
    assert main([str(run.path)]) == 0
    assert run.page.read_text(encoding="utf-8") == render_page(record)
    assert not list(run.path.glob("*.partial"))
    assert main([str(run.path / "nowhere")]) == 1


def test_steps_that_were_done_twice_are_drawn_once() -> None:
    steps = [1, 2, 3, 4, 3, 4, 5]
    events = [
        {"kind": "metrics", "step": step, "values": {"loss": float(place)}}
        for place, step in enumerate(steps)
    ]
    assert curve_points(events, "loss") == [(1, 0.0), (2, 1.0), (3, 4.0), (4, 5.0), (5, 6.0)]
    assert curve_points([*events, {"kind": "heartbeat"}], "gradient_norm") == []


def test_a_long_curve_is_averaged() -> None:
    points = [(float(step), float(step % 2)) for step in range(1000)]
    short = averaged(points, most=100)
    assert len(short) == 100
    assert all(y == 0.5 for _, y in short)


MEASURED_ANEW = {
    "reason": "calibration Dice rose",
    "kept": True,
    "frames": 5,
    "window_px": [448, 512],
    "calibration_dice_before": 0.25,
    "calibration_dice_after": 0.5,
}


@pytest.mark.parametrize(
    ("outcome", "said"),
    [
        (
            MEASURED_ANEW,
            ">measured anew on 512x448\xa0px of each of 5 training frames: calibration Dice went",
        ),
        (
            {**MEASURED_ANEW, "kept": False, "window_px": None},
            "those of training: measured anew on 5 training frames, calibration Dice would have",
        ),
        (
            {"kept": False, "frames": 0, "reason": "training was too short for it"},
            "those of training, not measured anew: training was too short for it",
        ),
    ],
)
def test_the_page_says_whose_statistics_are_shipped(outcome: dict[str, Any], said: str) -> None:
    page = render_page(RunRecord({"recalibration": outcome}, [], {}))
    assert said in page
    assert ("from 0.250 to 0.500" in page) == (outcome["frames"] > 0)
