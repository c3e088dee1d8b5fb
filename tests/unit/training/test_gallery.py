"""The gallery keeps the worst, draws only what it keeps, and cuts native pixels."""

import json
from pathlib import Path

import cv2
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data.display import class_colour
from training.gallery import (
    LABEL_COLOUR,
    REPORTED_COLOUR,
    SIDE_PX,
    Box,
    Crop,
    Finding,
    Gallery,
    Kind,
    cut_crop,
)


def finding(
    score: float = 0.5,
    *,
    kind: Kind = "miss",
    is_wrong: bool = True,
    name: str = "f",
    box: Box = (5, 5, 3, 3),
) -> Finding:
    return Finding(kind, name, "pit", box, 9, score, is_wrong)


def blank_crop(_: Finding) -> Crop:
    return Crop((0, 0, 2, 2), is_cut=False, picture=np.zeros((2, 8, 3), np.uint8))


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), max_size=40), st.integers(0, 6))
def test_the_worst_are_kept_in_order_and_the_first_of_equals(
    offered: list[tuple[float, bool]], limit: int
) -> None:
    for kind, sign in (("miss", 1), ("false_alarm", -1)):
        gallery = Gallery(limit)
        findings = [
            finding(score, kind=kind, is_wrong=wrong, name=f"{index}")  # type: ignore[arg-type]
            for index, (score, wrong) in enumerate(offered)
        ]
        for each in findings:
            gallery.offer(each, blank_crop)
        ordered = sorted(findings, key=lambda each: (not each.is_wrong, sign * each.score))
        assert [kept for kept, _ in gallery.worst(kind)] == ordered[:limit]  # type: ignore[arg-type]


def test_pictures_are_drawn_for_what_is_kept_alone() -> None:
    drawn: list[Finding] = []

    def cut(each: Finding) -> Crop:
        drawn.append(each)
        return blank_crop(each)

    gallery = Gallery(2)
    for score in (0.1, 0.2, 0.3, 0.4):
        gallery.offer(finding(score), cut)
    assert [each.score for each in drawn] == [0.1, 0.2]


def test_a_crop_shows_native_pixels_beside_the_same_with_outlines() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (400, 500, 1), dtype=np.uint8)
    labelled = np.zeros((400, 500), np.bool_)
    reported = labelled.copy()
    labelled[390:399, 480:490] = True
    reported[350:352, 470:472] = True
    crop = cut_crop(finding(box=(480, 390, 10, 9)), pixels, labelled, reported)
    x, y, width, height = crop.box
    assert not crop.is_cut
    assert (x + width, y + height) == (500, 400)
    plain, marked = crop.picture[:, :width], crop.picture[:, -width:]
    assert np.array_equal(plain[:, :, 0], pixels[y : y + height, x : x + width, 0])
    for colour, place in (
        (LABEL_COLOUR, (389 - y, 484 - x)),
        (REPORTED_COLOUR, (349 - y, 471 - x)),
    ):
        assert tuple(marked[place]) == class_colour(colour)


def test_a_defect_larger_than_a_picture_is_cut_and_says_so() -> None:
    plane = np.ones((1000, 900), np.bool_)
    crop = cut_crop(
        finding(box=(0, 0, 900, 1000)), np.full((1000, 900, 3), 9, np.uint16), plane, plane
    )
    assert crop.is_cut
    assert crop.box[2:] == (SIDE_PX, SIDE_PX)


def test_a_frame_smaller_than_a_window_is_shown_whole() -> None:
    plane = np.zeros((30, 40), np.bool_)
    crop = cut_crop(finding(), np.zeros((30, 40, 1), np.uint8), plane, plane)
    assert crop.box == (0, 0, 40, 30)


def test_the_index_names_every_picture_and_nothing_of_an_earlier_attempt_stays(
    tmp_path: Path,
) -> None:
    for count in (3, 1):
        gallery = Gallery()
        for index in range(count):
            gallery.offer(finding(kind="false_alarm", name=f"<b>{index}"), blank_crop)
        written = gallery.write(tmp_path / "gallery")
    index = json.loads((tmp_path / "gallery" / "index.json").read_text())
    assert index == json.loads(json.dumps(written))
    assert [entry["picture"] for entry in index] == ["false_alarm-01.webp"]
    names = {path.name for path in (tmp_path / "gallery").iterdir()}
    assert names == {"index.json", "false_alarm-01.webp"}
    picture = cv2.imread(str(tmp_path / "gallery" / "false_alarm-01.webp"))
    assert picture is not None
    assert picture.shape == (2, 8, 3)
