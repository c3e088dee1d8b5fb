from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import Box, BoxLabels, GoodFrame, LabelError, Polygon, PolygonLabels
from data.cvat import looks_like_cvat, read_cvat

BOX = '<box label="pit" xtl="1.5" ytl="2" xbr="9" ybr="9" occluded="0" z_order="0"></box>'
POLYGON = '<polygon label="pit" points="1,1;9,1;9.5,9"/>'


def image(*shapes: str, name: str = "a.png", width: str = "100", height: str = "50") -> str:
    opening = f'<image id="0" name="{name}" width="{width}" height="{height}">'
    return "\n".join([opening, *shapes, "</image>"])


def document(*images: str) -> bytes:
    return "\n".join(
        ["<annotations>", "<version>1.1</version>", *images, "</annotations>"]
    ).encode()


def read(raw: bytes, classes: Any = None) -> Any:
    return read_cvat(raw, name="annotations.xml", classes=classes)


def test_boxes_outlines_and_good_frames_are_told_apart_frame_by_frame() -> None:
    shapes = [(BOX,), (POLYGON,), ()]
    names = ["train/a.png", "b.png", "c.png"]
    raw = document(*(image(*found, name=name) for found, name in zip(shapes, names, strict=True)))
    assert looks_like_cvat(raw)
    first, second, third = read(raw)
    assert (first.file_name, first.width, first.height) == ("train/a.png", 100, 50)
    assert first.labels == BoxLabels((Box("pit", 1.5, 2, 7.5, 7),))
    assert second.labels == PolygonLabels((Polygon("pit", ((1, 1), (9, 1), (9.5, 9))),))
    assert third.labels == GoodFrame()
    assert second.where == "line 6"


def test_what_lies_barely_outside_is_moved_to_the_edge() -> None:
    (frame,) = read(document(image(BOX.replace('"1.5"', '"-0.9"').replace('ybr="9"', 'ybr="51"'))))
    assert frame.labels == BoxLabels((Box("pit", 0, 2, 9, 48),))


@pytest.mark.parametrize(
    ("raw", "code", "line"),
    [
        (b"<annotation/>", "label_field_type", 1),
        (document(), "label_field_type", 1),
        (b"<annotations>\n<image", "label_not_xml", 2),
        (b'<!DOCTYPE a [<!ENTITY b "c">]>\n<annotations/>', "label_not_xml", 1),
        (document(image(), image()), "label_field_type", 5),
        (document(image(name="../a.png")), "unsafe_name", 3),
        (document(image(width="0")), "label_field_type", 3),
        (document(image(height="5e1")), "label_field_type", 3),
        (document(image(BOX, POLYGON)), "label_mixed", 5),
        (document(image(BOX.replace('"1.5"', '"left"'))), "label_field_type", 4),
        (document(image(BOX.replace('"1.5"', '"nan"'))), "label_field_type", 4),
        (document(image(BOX.replace('"1.5"', '"-2"'))), "box_outside_frame", 4),
        (document(image(BOX.replace('"1.5"', '"9"'))), "box_empty", 4),
        (document(image(BOX.replace(' xtl="1.5"', ""))), "label_field_missing", 4),
        (
            document(image(BOX.replace("occluded", "rotation").replace('"0"', '"30"', 1))),
            "unsupported_shape",
            4,
        ),
        (document(image(POLYGON.replace("9,1;", "9,52;"))), "polygon_outside_frame", 4),
        (document(image(POLYGON.replace("9,1;", ""))), "polygon_too_short", 4),
        (document(image(POLYGON.replace("9,1;", "9;"))), "polygon_too_short", 4),
        (document(image(POLYGON.replace('"pit"', '" "'))), "label_field_type", 4),
        (document(image(POLYGON.replace("pit", "spur"))), "unknown_class", 4),
        (
            document(image('<mask label="pit" rle="1, 2" left="0" top="0"/>')),
            "unsupported_shape",
            4,
        ),
        (document(image('<tag label="pit"/>')), "unsupported_shape", 4),
        (document(image('<polyline label="pit" points="1,1;2,2"/>')), "unsupported_shape", 4),
    ],
)
def test_an_error_names_the_line_and_says_what_to_do(raw: bytes, code: str, line: int) -> None:
    with pytest.raises(LabelError) as caught:
        read(raw, ["pit"])
    error = caught.value
    assert (error.code, error.where, error.file) == (code, f"line {line}", "annotations.xml")
    assert error.hint


@given(
    st.sampled_from(["label", "xtl", "ybr", "points", "name", "width", "rotation"]),
    st.text("0159.,;-einfa /", max_size=12),
)
def test_no_value_in_any_attribute_raises_anything_but_its_error(key: str, value: str) -> None:
    text = document(image(BOX.replace("occluded", "rotation")), image(POLYGON, name="b.png"))
    before, found, after = text.decode().partition(f'{key}="')
    changed = before + found + value + after[after.index('"') :]
    try:
        frames = read(changed.encode())
    except LabelError as error:
        assert (error.file, bool(error.where), bool(error.hint)) == ("annotations.xml", True, True)  # noqa: PT017 - some values are refused, some are not.
        return
    assert len(frames) == 2
