from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import (
    Box,
    BoxLabels,
    GoodFrame,
    LabelError,
    LayoutError,
    Polygon,
    PolygonLabels,
    import_folder,
    read_yolo,
)

CLASSES = ("spur", "short")


def read(text: str | bytes, classes: tuple[str, ...] = CLASSES) -> Any:
    raw = text.encode() if isinstance(text, str) else text
    return read_yolo(raw, name="a.txt", classes=classes, width=200, height=100)


def test_a_box_is_given_by_its_centre_and_its_size_in_parts_of_the_frame() -> None:
    labels = read("1 0.5 0.5 0.125 0.25\r\n\r\n0 0.0625 0.9375 0.125 0.125\n")
    assert labels == BoxLabels((Box("short", 87.5, 37.5, 25, 25), Box("spur", 0, 87.5, 25, 12.5)))


def test_an_outline_is_a_list_of_points() -> None:
    labels = read("0 0.1 0.1 0.5 0.1 0.5 1")
    assert labels == PolygonLabels((Polygon("spur", ((20, 10), (100, 10), (100, 100))),))


@pytest.mark.parametrize("text", ["", "\n \n", "\ufeff"])
def test_a_file_without_a_line_declares_a_good_frame(text: str) -> None:
    assert read(text) == GoodFrame()


def test_what_rounding_left_outside_is_moved_to_the_edge() -> None:
    (box,) = read("0 0.05 0.05 0.101 0.100001").boxes
    assert (box.x, box.y) == (0, 0)
    assert box.width == pytest.approx(20.1)


@pytest.mark.parametrize(
    ("text", "code", "where"),
    [
        ("0 0.5 0.5 0.1 0.1\n2 0.5 0.5 0.1 0.1", "unknown_class", "line 2"),
        ("-1 0.5 0.5 0.1 0.1", "label_field_type", "line 1"),
        ("1.0 0.5 0.5 0.1 0.1", "label_field_type", "line 1"),
        ("1_0 0.5 0.5 0.1 0.1", "label_field_type", "line 1"),
        ("9" * 5000 + " 0.5 0.5 0.1 0.1", "unknown_class", "line 1"),
        ("spur 0.5 0.5 0.1 0.1", "label_field_type", "line 1"),
        ("0", "label_field_type", "line 1"),
        ("0 0.5 0.5 0.1", "label_field_type", "line 1"),
        ("0 0.5 0.5 0.1 0.1 0.97", "label_field_type", "line 1"),
        ("0 0.1 0.1 0.2 0.2 0.3 0.3 0.4", "label_field_type", "line 1"),
        ("0 0.5 0.5 0.1 wide", "label_field_type", "line 1"),
        ("0 0.5 nan 0.1 0.1", "label_field_type", "line 1"),
        ("0 0.5 inf 0.1 0.1", "label_field_type", "line 1"),
        ("0 0.5 0.5 0 0.1", "box_empty", "line 1"),
        ("\n0 0.5 0.5 0.1 -0.1", "box_empty", "line 2"),
        ("0 288 402 338 435", "box_outside_frame", "line 1"),
        ("0 1.0 0.5 0.1 0.1", "box_outside_frame", "line 1"),
        ("0 1.001 0.5 0.0002 0.1", "box_outside_frame", "line 1"),
        ("0 0.1 0.1 0.5 0.1 0.5 1.1", "polygon_outside_frame", "line 1"),
        ("0 0.5 0.5 0.1 0.1\n0 0.1 0.1 0.5 0.1 0.5 1", "label_mixed", "line 2"),
        (b"0 0.5 0.5 0.1 0.1\n\xff", "label_not_text", "line 2"),
    ],
)
def test_an_error_names_the_line_and_says_what_to_do(
    text: str | bytes, code: str, where: str
) -> None:
    with pytest.raises(LabelError) as caught:
        read(text)
    error = caught.value
    assert (error.code, error.where, error.file) == (code, where, "a.txt")
    assert error.hint
    assert len(error.detail) < 300


@given(st.text("019.- e\nnaif", max_size=60) | st.binary(max_size=60))
def test_no_content_raises_anything_but_its_error(content: str | bytes) -> None:
    try:
        labels = read(content)
    except LabelError as error:
        assert (error.file, bool(error.where), bool(error.hint)) == ("a.txt", True, True)  # noqa: PT017 - some contents are refused, some are not.
        return
    for box in getattr(labels, "boxes", ()):
        assert 0 <= box.x < box.x + box.width <= 200
        assert 0 <= box.y < box.y + box.height <= 100


def write_frame(path: Path, width: int, height: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (height, width), dtype=np.uint8)
    path.write_bytes(imagecodecs.png_encode(pixels))


def test_a_folder_of_yolo_files_needs_the_classes_and_takes_each_frames_size(
    tmp_path: Path,
) -> None:
    write_frame(tmp_path / "images/train/a.png", 200, 100)
    write_frame(tmp_path / "images/train/b.png", 64, 100)
    for name in "ab":
        (tmp_path / "labels/train").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"labels/train/{name}.txt").write_text("1 0.5 0.5 0.25 0.5\n")
    (tmp_path / "labels/classes.txt").write_text("spur\nshort\n")
    with pytest.raises(LayoutError) as caught:
        import_folder(tmp_path)
    assert caught.value.code == "classes_needed"
    imported = import_folder(tmp_path, classes=CLASSES)
    assert imported.problems == ()
    assert imported.ignored == ("labels/classes.txt",)
    assert [item.labels for item in imported.items] == [
        BoxLabels((Box("short", 75, 25, 50, 50),)),
        BoxLabels((Box("short", 24, 25, 16, 50),)),
    ]
