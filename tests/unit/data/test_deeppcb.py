from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import Box, BoxLabels, GoodFrame, LabelError, import_folder
from data.deeppcb import DEEPPCB_CLASSES, deeppcb_sample, read_deeppcb
from data.recognition import recognize_layout

SET = (
    "PCBData/group1/00041/00041000_temp.jpg",
    "PCBData/group1/00041/00041000_test.jpg",
    "PCBData/group1/00041_not/00041000.txt",
    "PCBData/trainval.txt",
)


def read(text: str | bytes, classes: Any = None) -> Any:
    raw = text.encode() if isinstance(text, str) else text
    return read_deeppcb(raw, name="a.txt", classes=classes, width=200, height=100)


@pytest.mark.parametrize(
    "text", ["10 20 30 25 1\r\n\n0 0 200 100 6\n", "10,20,30,25,1\n0,0,200,100,6"]
)
def test_a_line_is_two_corners_and_a_type(text: str) -> None:
    assert read(text) == BoxLabels((Box("open", 10, 20, 20, 5), Box("pin-hole", 0, 0, 200, 100)))


def test_a_file_without_a_line_declares_a_good_frame() -> None:
    assert read("\n") == GoodFrame()


@pytest.mark.parametrize(
    ("text", "code", "where"),
    [
        ("10 20 30 25", "label_field_type", "line 1"),
        ("10 20 30 25 1 1", "label_field_type", "line 1"),
        ("10 20 30 25 1\n10 20 -30 25 1", "label_field_type", "line 2"),
        ("10.5 20 30 25 1", "label_field_type", "line 1"),
        ("10 20 30 9999999 1", "label_field_type", "line 1"),
        ("10 20 30 25 0", "unknown_class", "line 1"),
        ("10 20 30 25 7", "unknown_class", "line 1"),
        ("10 20 10 25 1", "box_empty", "line 1"),
        ("10 25 30 20 1", "box_empty", "line 1"),
        ("10 20 201 25 1", "box_outside_frame", "line 1"),
        (b"10 20 30 25 1\n\xff", "label_not_text", "line 2"),
    ],
)
def test_an_error_names_the_line_and_says_what_to_do(
    text: str | bytes, code: str, where: str
) -> None:
    with pytest.raises(LabelError) as caught:
        read(text)
    assert (caught.value.code, caught.value.where, caught.value.file) == (code, where, "a.txt")
    assert caught.value.hint


def test_a_type_that_the_data_set_does_not_declare_is_refused_where_it_is_used() -> None:
    assert len(read("10 20 30 25 1", ["open"]).boxes) == 1
    with pytest.raises(LabelError) as caught:
        read("10 20 30 25 1\n10 20 30 25 2", ["open"])
    assert (caught.value.code, caught.value.where) == ("unknown_class", "line 2")


@given(st.text("0123 ,-.\n", max_size=40) | st.binary(max_size=40))
def test_no_content_raises_anything_but_its_error(content: str | bytes) -> None:
    try:
        labels = read(content)
    except LabelError as error:
        assert (error.file, bool(error.where), bool(error.hint)) == ("a.txt", True, True)  # noqa: PT017 - some contents are refused, some are not.
        return
    for box in getattr(labels, "boxes", ()):
        assert 0 <= box.x < box.x + box.width <= 200
        assert 0 <= box.y < box.y + box.height <= 100


def test_the_tested_picture_is_the_frame_and_the_template_is_counted_as_left_out() -> None:
    frame, label = deeppcb_sample(SET[1]), deeppcb_sample(SET[2])
    assert frame is not None
    assert label is not None
    assert (frame.kind, label.kind, frame.key) == ("image", "deeppcb", label.key)
    layout = recognize_layout(SET, {})
    assert layout.name == "deeppcb"
    assert [name for name in SET if layout.leaves_out(name)] == [SET[0], SET[3]]
    templates, others = layout.notes
    assert templates.startswith("1 pictures _temp")
    assert others.endswith("left out: PCBData/trainval.txt")


@pytest.mark.datasets
def test_the_board_set_has_the_pairs_that_its_readme_counts(datasets_dir: Path) -> None:
    readme = (datasets_dir / "deeppcb" / "README.md").read_text()
    imported = import_folder(datasets_dir / "deeppcb")
    pairs = len(imported.items)
    assert f" {pairs} 640x640 binarised line-scan pairs" in readme
    assert imported.problems == ()
    assert imported.classes == DEEPPCB_CLASSES
    assert {(item.width, item.height) for item in imported.items} == {(640, 640)}
    lines = Counter[str]()
    for path in (datasets_dir / "deeppcb").rglob("*_not/*.txt"):
        lines.update(line.split()[4] for line in path.read_text().splitlines() if line)
    boxes = Counter(
        str(DEEPPCB_CLASSES.index(box.class_name) + 1)
        for item in imported.items
        if isinstance(item.labels, BoxLabels)
        for box in item.labels.boxes
    )
    assert boxes == lines
    assert imported.layout.notes[0].startswith(f"{pairs} pictures _temp")
