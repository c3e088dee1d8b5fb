from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import Box, LabelError, import_folder, read_voc
from data.labels import BoxLabels

OBJECT = """
  <object>
    <name>{name}</name>
    <difficult>1</difficult>
    <bndbox>
      <ymin>{ymin}</ymin>
      <xmin>{xmin}</xmin>
      <xmax>{xmax}</xmax>
      <ymax>{ymax}</ymax>
    </bndbox>
  </object>"""
DOCUMENT = """<annotation>
  <filename>a.jpg</filename>
  <size><width>{width}</width><height>{height}</height><depth>3</depth></size>{objects}
</annotation>
"""


def shape(**changes: Any) -> str:
    return OBJECT.format(**{"name": "spur", "xmin": 3, "ymin": 5, "xmax": 10, "ymax": 6} | changes)


def document(*objects: str, width: Any = 100, height: Any = 50) -> bytes:
    return DOCUMENT.format(width=width, height=height, objects="".join(objects)).encode()


def read(raw: bytes, classes: tuple[str, ...] | None = ("spur",)) -> Any:
    return read_voc(raw, name="a.xml", classes=classes)


def test_a_box_covers_its_first_and_its_last_pixel() -> None:
    annotation = read(document(shape(), shape(xmin=1, ymin=1, xmax=100, ymax=50)))
    assert (annotation.width, annotation.height) == (100, 50)
    assert annotation.boxes == (Box("spur", 2, 4, 8, 2), Box("spur", 0, 0, 100, 50))


def test_the_box_of_a_tool_that_counts_from_zero_is_moved_to_the_edge() -> None:
    (box,) = read(document(shape(xmin=0, ymin=0.5))).boxes
    assert box == Box("spur", 0, 0, 10, 6)


def test_a_file_without_an_object_declares_a_good_frame() -> None:
    assert read(document()).boxes == ()


def test_without_declared_classes_every_name_is_read() -> None:
    (box,) = read(document(shape(name="Kratzer &lt;tief&gt;")), None).boxes
    assert box.class_name == "Kratzer <tief>"


def test_the_encoding_that_a_file_declares_is_respected() -> None:
    text = document(shape(name="Stoß")).decode()
    raw = ('<?xml version="1.0" encoding="latin-1"?>' + text).encode("latin-1")
    assert read(raw, None).boxes[0].class_name == "Stoß"


# The size stands on line 3; an object's name on the second line of it, its box on the fourth.
@pytest.mark.parametrize(
    ("raw", "code", "where"),
    [
        (document(shape(), shape(name="dent")), "unknown_class", "line 15"),
        (document(shape(name=" ")), "label_field_type", "line 5"),
        (document(shape(xmin="left")), "label_field_type", "line 9"),
        (document(shape(xmin="nan")), "label_field_type", "line 9"),
        (document(shape(xmin=12)), "box_empty", "line 7"),
        (document(shape(ymin=7.5)), "box_empty", "line 7"),
        (document(shape(xmax=101.5)), "box_outside_frame", "line 7"),
        (document(shape(ymin=-1)), "box_outside_frame", "line 7"),
        (document(shape(xmin=-1, xmax=0)), "box_outside_frame", "line 7"),
        (document(shape(), width=0), "label_field_type", "line 3"),
        (document(shape(), width="1e300"), "label_field_type", "line 3"),
        (document(shape(), width="1e3.5"), "label_field_type", "line 3"),
        (document(shape(), height=50.5), "label_field_type", "line 3"),
        (document("<object/>"), "label_field_missing", "line 3"),
        (document(shape().replace("bndbox", "box")), "label_field_missing", "line 4"),
        (document(shape().replace("xmax", "xmin")), "label_field_type", "line 10"),
        (b"<annotations>\n</annotations>", "label_field_type", "line 1"),
        (b"<annotation/>", "label_field_missing", "line 1"),
    ],
)
def test_an_error_names_the_line_and_says_what_to_do(raw: bytes, code: str, where: str) -> None:
    with pytest.raises(LabelError) as caught:
        read(raw)
    error = caught.value
    assert (error.code, error.where, error.file) == (code, where, "a.xml")
    assert error.hint


@pytest.mark.parametrize(
    ("raw", "where"),
    [
        (b"", "line 1"),
        (b"{}", "line 1"),
        (document(shape())[:-20], "line 13"),
        (document(shape()) + b"<more/>", "line 15"),
        (b"<annotation>\n<size>\n</annotation>", "line 3"),
        (b"<annotation>\xff</annotation>", "line 1"),
        (b'<?xml version="1.0" encoding="klingon"?><annotation/>', "line 1"),
        (b"<a>" * 100_000, "line 1"),
        (b"<a>" + b"\n<b/>" * 250_000 + b"</a>", "line 200001"),
        (b"<a>" + b"word " * 2_100_000 + b"</a>", "line 1"),
        # What billions of laughs and stolen files are made of.
        (b'<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>', "line 1"),
        (b'<!DOCTYPE a SYSTEM "file:///etc/passwd"><annotation/>', "line 1"),
    ],
)
def test_what_is_no_xml_or_could_reach_beyond_the_file_is_refused(raw: bytes, where: str) -> None:
    with pytest.raises(LabelError) as caught:
        read(raw)
    assert (caught.value.code, caught.value.where) == ("label_not_xml", where)


@given(st.binary(max_size=200), st.integers(0, 400), st.integers(0, 400))
def test_no_damage_to_a_file_raises_anything_but_its_error(
    noise: bytes, start: int, length: int
) -> None:
    raw = document(shape(), shape())
    damaged = raw[:start] + noise + raw[start + length :]
    try:
        annotation = read_voc(damaged, name="a.xml", classes=None)
    except LabelError as error:
        assert (error.file, bool(error.where), bool(error.hint)) == ("a.xml", True, True)  # noqa: PT017 - most damage is refused, some is not.
        return
    for box in annotation.boxes:
        assert 0 <= box.x < box.x + box.width <= annotation.width
        assert 0 <= box.y < box.y + box.height <= annotation.height


@pytest.mark.datasets
def test_the_boards_of_hripcb_are_read_with_every_box(datasets_dir: Path) -> None:
    """Eighteen photos and 66 boxes, says its README."""
    imported = import_folder(datasets_dir / "hripcb" / "PCB_DATASET")
    assert imported.problems == ()
    assert len(imported.classes) == 6
    boxes = [
        box
        for item in imported.items
        if isinstance(item.labels, BoxLabels)
        for box in item.labels.boxes
    ]
    assert len(imported.items) == 18
    assert len(boxes) == 66
    # The defects were painted 40 to 130 px long.
    assert all(20 <= max(box.width, box.height) <= 200 for box in boxes)


def test_decimals_are_rounded_once() -> None:
    (box,) = read(document(shape(xmin="1.1", xmax="10.3"))).boxes
    assert (box.x, box.width) == (0.1, 10.2)
