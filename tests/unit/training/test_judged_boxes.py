"""A detector's gallery shows what it missed and what it reported for nothing, worst first."""

import numpy as np

from data import Frame
from data.instances import VisibleBox
from models import ClassThreshold, Detections, OperatingPoint
from training.average_precision import JudgedFrame, labelled_boxes
from training.gallery import Finding, Gallery, Kind
from training.judged_boxes import BoxFindings

CLASSES = ("pit", "scratch")
POINT = OperatingPoint(classes={name: ClassThreshold(threshold=0.5) for name in CLASSES})
Reported = tuple[str, float, tuple[float, float, float, float]]


def offer(
    gallery: Gallery, name: str, reported: list[Reported], labelled: list[VisibleBox]
) -> None:
    """Judge one frame of 100x80 at the point; reported boxes are left, top, right, bottom."""
    pixels = np.zeros((80, 100, 1), np.uint8)
    frame = Frame(name, pixels, np.zeros((80, 100, 2), np.uint8), tuple(labelled))
    strongest_first = sorted(reported, key=lambda each: -each[1])
    found = Detections(
        np.array([box for _, _, box in strongest_first], np.float32).reshape(-1, 4),
        np.array([score for _, score, _ in strongest_first], np.float32),
        np.array([CLASSES.index(each) for each, _, _ in strongest_first], np.int64),
    )
    judged = JudgedFrame(found, labelled_boxes(frame, CLASSES))
    BoxFindings(gallery, CLASSES, POINT).add(frame, judged)


def pit(x: int, y: int = 10) -> VisibleBox:
    return VisibleBox("pit", x, y, 10, 10, 1.0)


def findings(gallery: Gallery, kind: Kind) -> list[Finding]:
    return [finding for finding, _ in gallery.worst(kind)]


def test_a_missed_box_comes_before_one_that_was_hardly_found() -> None:
    gallery = Gallery()
    reported: list[Reported] = [("pit", 0.6, (10, 10, 20, 20)), ("pit", 0.3, (40, 10, 50, 20))]
    offer(gallery, "a", reported, [pit(10), pit(40), pit(70)])
    worst = findings(gallery, "miss")
    assert [(each.box[0], round(each.score, 3), each.is_wrong) for each in worst] == [
        (70, 0.0, True),
        (40, 0.3, True),
        (10, 0.6, False),
    ]
    assert findings(gallery, "false_alarm") == []


def test_a_reported_box_that_finds_nothing_is_an_alarm_and_tells_what_else_is_labelled_there() -> (
    None
):
    gallery = Gallery()
    scratch = VisibleBox("scratch", 58, 18, 8, 8, 1.0)
    offer(gallery, "a", [("pit", 0.9, (60.2, 20.7, 70.1, 30.0))], [pit(10), scratch])
    (alarm,) = findings(gallery, "false_alarm")
    assert alarm.box == (60, 20, 11, 10)
    assert (alarm.is_wrong, alarm.area_px, alarm.labelled_as) == (True, 110, ("scratch",))


def test_a_second_box_on_a_defect_that_is_found_already_is_an_alarm() -> None:
    gallery = Gallery()
    twice: list[Reported] = [("pit", 0.9, (10, 10, 20, 20)), ("pit", 0.8, (11, 10, 21, 20))]
    offer(gallery, "a", twice, [pit(10)])
    assert [round(each.score, 3) for each in findings(gallery, "false_alarm")] == [0.8]
    assert [each.is_wrong for each in findings(gallery, "miss")] == [False]


def test_of_a_good_frame_without_an_alarm_the_nearest_box_is_shown_as_not_reported() -> None:
    gallery = Gallery()
    weak: list[Reported] = [("pit", 0.2, (0, 0, 9, 9)), ("pit", 0.4, (30, 30, 40, 40))]
    offer(gallery, "good", weak, [])
    (nearest,) = findings(gallery, "false_alarm")
    assert (round(nearest.score, 3), nearest.is_wrong) == (0.4, False)


def test_at_most_three_of_a_frame_and_class_and_boxes_beyond_the_frame_are_cut_to_it() -> None:
    gallery = Gallery()
    many: list[Reported] = [("pit", 0.9 - x / 100, (x, 70.5, x + 8, 95)) for x in range(0, 60, 10)]
    offer(gallery, "a", many, [])
    shown = findings(gallery, "false_alarm")
    assert [each.box for each in shown] == [(0, 70, 8, 10), (10, 70, 8, 10), (20, 70, 8, 10)]


def test_both_boxes_are_outlined_in_the_picture() -> None:
    gallery = Gallery()
    offer(gallery, "a", [("pit", 0.9, (50, 40, 62, 52))], [pit(20)])
    (_, crop) = gallery.worst("miss")[0]
    half = crop.box[2]
    plain, marked = crop.picture[:, :half], crop.picture[:, -half:]
    changed = np.argwhere((plain != marked).any(axis=2))
    x, y = crop.box[:2]
    across = set((changed[:, 1] + x).tolist())
    assert any(19 <= place <= 31 for place in across)
    assert any(49 <= place <= 63 for place in across)
    assert all(8 <= place + y <= 54 for place in changed[:, 0])
