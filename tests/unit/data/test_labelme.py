import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import LabelError, read_header, read_labelme
from data.labels import check_labels_fit


def document(**changes: Any) -> dict[str, Any]:
    shape = {
        "label": "pit",
        "points": [[1, 2], [30.5, 2], [10, 20]],
        "shape_type": "polygon",
    }
    return {
        "version": "5.0",
        "imagePath": "..\\data\\a.jpg",
        "imageData": "not base64 at all",
        "imageWidth": 100,
        "imageHeight": 50,
        "shapes": [shape],
    } | changes


def with_shape(**changes: Any) -> dict[str, Any]:
    valid = document()
    valid["shapes"] = [valid["shapes"][0], valid["shapes"][0] | changes]
    return valid


def read(content: dict[str, Any], classes: tuple[str, ...] | None = ("pit",)) -> Any:
    return read_labelme(json.dumps(content).encode(), name="a.json", classes=classes)


def test_a_file_is_read_and_its_embedded_picture_left_alone() -> None:
    annotation = read(document())
    assert (annotation.image_name, annotation.width, annotation.height) == ("a.jpg", 100, 50)
    assert annotation.polygons[0].points == ((1.0, 2.0), (30.5, 2.0), (10.0, 20.0))


@pytest.mark.parametrize(
    ("content", "code", "where"),
    [
        (with_shape(label="dent"), "unknown_class", "/shapes/1/label"),
        (with_shape(label=" "), "label_field_type", "/shapes/1/label"),
        (with_shape(label=3), "label_field_type", "/shapes/1/label"),
        (with_shape(points=[[1, 1], [2, 2]]), "polygon_too_short", "/shapes/1/points"),
        (with_shape(points=[[1, 1], [2, 2], [3]]), "label_field_type", "/shapes/1/points/2"),
        (with_shape(points=[[1, 1], [2, "x"], [3, 3]]), "label_field_type", "/shapes/1/points/1/1"),
        (
            with_shape(points=[[1, 1], [True, 2], [3, 3]]),
            "label_field_type",
            "/shapes/1/points/1/0",
        ),
        (
            with_shape(points=[[1, 1], [2, 2], [100.6, 3]]),
            "polygon_outside_frame",
            "/shapes/1/points/2",
        ),
        (
            with_shape(points=[[1, -1], [2, 2], [3, 3]]),
            "polygon_outside_frame",
            "/shapes/1/points/0",
        ),
        (with_shape(shape_type="linestrip"), "unsupported_shape", "/shapes/1/shape_type"),
        (with_shape(shape_type="mask"), "unsupported_shape", "/shapes/1/shape_type"),
        (document(imageWidth=None), "label_field_type", "/imageWidth"),
        (document(imageHeight=True), "label_field_type", "/imageHeight"),
        (document(imageHeight=0), "label_field_type", "/imageHeight"),
        # Sizes that no database column holds, and a number that no float holds.
        (document(imageHeight=10**400), "label_field_type", "/imageHeight"),
        (
            with_shape(points=[[1, 1], [2, 10**400], [3, 3]]),
            "label_field_type",
            "/shapes/1/points/1/1",
        ),
        (document(shapes={}), "label_field_type", "/shapes"),
        (document(shapes=["a"]), "label_field_type", "/shapes/0"),
    ],
)
def test_an_error_points_at_the_value_and_says_what_to_do(
    content: dict[str, Any], code: str, where: str
) -> None:
    with pytest.raises(LabelError) as caught:
        read(content)
    error = caught.value
    assert (error.code, error.where, error.file) == (code, where, "a.json")
    assert error.hint


@pytest.mark.parametrize("key", ["imagePath", "imageWidth", "imageHeight", "shapes"])
def test_a_missing_field_is_named(key: str) -> None:
    content = document()
    del content[key]
    with pytest.raises(LabelError) as caught:
        read(content)
    assert (caught.value.code, caught.value.where) == ("label_field_missing", f"/{key}")


@pytest.mark.parametrize(
    ("raw", "where"),
    [
        (b"", "line 1"),
        (b'{\n"shapes": [\n,', "line 3"),
        (b'{\n"label": "Stra\xdfe"}', "line 2"),
        (b"[" * 100_000, "line 1"),
        (b"\xff\xd8\xff\xe0", "line 1"),
    ],
)
def test_what_is_no_json_names_the_line(raw: bytes, where: str) -> None:
    with pytest.raises(LabelError) as caught:
        read_labelme(raw, name="a.json", classes=None)
    assert (caught.value.code, caught.value.where) == ("label_not_json", where)


def test_nan_is_no_coordinate() -> None:
    with pytest.raises(LabelError, match="NaN"):
        read(with_shape(points=[[1, 1], [2, float("nan")], [3, 3]]))


def test_a_click_on_the_frames_edge_is_inside() -> None:
    polygon = read(with_shape(points=[[0, 0], [100, 50], [100.4, -0.4]])).polygons[1]
    assert polygon.points[2] == (100.0, 0.0)


def test_rectangles_and_circles_become_outlines() -> None:
    rectangle = read(with_shape(shape_type="rectangle", points=[[30, 40], [10, 20]])).polygons[1]
    assert rectangle.area_px == pytest.approx(400)
    circle = read(with_shape(shape_type="circle", points=[[50, 25], [60, 25]])).polygons[1]
    # An inscribed 72-gon encloses 0.13 % less than its circle.
    assert circle.area_px == pytest.approx(314.16, rel=0.002)


def test_labels_of_another_size_are_refused() -> None:
    png_header = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x64\0\0\0\x32\x08\0\0\0\0" + b"\0" * 8
    header = read_header(png_header, name="a.png")
    check_labels_fit((100, 50), header, "a.json")
    with pytest.raises(LabelError, match="100x51") as caught:
        check_labels_fit((100, 51), header, "a.json")
    assert caught.value.code == "label_size_mismatch"


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["label", "points", "shape_type", "x"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@given(shapes=JSON_VALUES, width=JSON_VALUES)
def test_any_json_gives_labels_or_an_error_with_a_place(shapes: Any, width: Any) -> None:
    for content in (document(shapes=shapes), document(imageWidth=width), shapes):
        places = []
        try:
            read_labelme(json.dumps(content).encode(), name="a.json", classes=None)
        except LabelError as error:
            places.append(error.where)
        assert None not in places


@pytest.mark.datasets
def test_every_real_labelme_file_is_read(datasets_dir: Path) -> None:
    paths = sorted((datasets_dir / "bsdata" / "label").glob("*.json"))
    files = [read_labelme(path.read_bytes(), name=path.name, classes=["Pitting"]) for path in paths]
    assert len(files) == 110
    assert sum(len(file.polygons) for file in files) == 155
    assert all(
        Path(file.image_name).stem == path.stem for file, path in zip(files, paths, strict=True)
    )
