import json
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import Box, BoxLabels, GoodFrame, LabelError, Polygon, PolygonLabels, import_folder
from data.coco import LabelledFrame, looks_like_coco, read_coco

OUTLINE = [10, 10, 30, 10, 30, 20.5]


def document(*annotations: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "info": {"year": 2025},
        "images": [
            {"id": 7, "file_name": "train/a.jpg", "width": 100, "height": 50},
            {"id": 3, "file_name": "b.jpg", "width": 64, "height": 48},
        ],
        "categories": [{"id": 1, "name": "spur"}, {"id": 2, "name": "short"}],
        "annotations": list(annotations),
    } | changes


def annotation(**changes: Any) -> dict[str, Any]:
    valid = {"id": 1, "image_id": 7, "category_id": 1, "bbox": [10, 5, 20, 4.5], "iscrowd": 0}
    return {key: value for key, value in (valid | changes).items() if value is not None}


def image(**changes: Any) -> dict[str, Any]:
    return {"id": 7, "file_name": "a.jpg", "width": 100, "height": 50} | changes


def read(content: Any, classes: tuple[str, ...] | None = ("spur", "short")) -> Any:
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    return read_coco(raw, name="all.json", classes=classes)


def test_boxes_outlines_and_good_frames_are_told_apart_frame_by_frame() -> None:
    frames = read(
        document(
            annotation(),
            annotation(id=2, category_id=2, bbox=[-0.5, 0, 20, 50.9]),
            annotation(image_id=3, segmentation=[OUTLINE, [1, 1, 2, 1, 2, 2, 1, 2]]),
        )
    )
    first, second = frames
    boxes = (Box("spur", 10, 5, 20, 4.5), Box("short", 0, 0, 19.5, 50))
    assert first == LabelledFrame(
        "train/a.jpg", 100, 50, BoxLabels(boxes), "/images/0", "/images/0/file_name"
    )
    outlines = [((10, 10), (30, 10), (30, 20.5)), ((1, 1), (2, 1), (2, 2), (1, 2))]
    assert second.labels == PolygonLabels(tuple(Polygon("spur", points) for points in outlines))
    assert [frame.labels for frame in read(document())] == [GoodFrame(), GoodFrame()]


def test_an_empty_segmentation_leaves_the_box() -> None:
    assert read(document(annotation(segmentation=[])))[0].labels.kind == "boxes"


def test_it_is_told_from_the_file_of_one_frame_without_being_read() -> None:
    assert looks_like_coco(json.dumps(document()).encode())
    assert not looks_like_coco(b'{"shapes": [], "imagePath": "images/annotations.jpg"}')
    without_classes = json.dumps({"images": [image()], "annotations": []}).encode()
    assert looks_like_coco(without_classes)
    with pytest.raises(LabelError, match="'categories' is missing"):
        read(without_classes)


RUN_LENGTHS = {"counts": "abc", "size": [50, 100]}


@pytest.mark.parametrize(
    ("content", "code", "where"),
    [
        (
            document(annotation(), annotation(image_id=8)),
            "label_field_type",
            "/annotations/1/image_id",
        ),
        (document(annotation(image_id=None)), "label_field_missing", "/annotations/0/image_id"),
        (document(annotation(category_id=3)), "label_field_type", "/annotations/0/category_id"),
        (document(annotation(category_id="1")), "label_field_type", "/annotations/0/category_id"),
        (document(annotation(bbox=None)), "label_field_missing", "/annotations/0/bbox"),
        (document(annotation(bbox=[1, 2, 3])), "label_field_type", "/annotations/0/bbox"),
        (document(annotation(bbox=[1, 2, True, 3])), "label_field_type", "/annotations/0/bbox/2"),
        (
            document(annotation(bbox=[1, 2, 10**400, 3])),
            "label_field_type",
            "/annotations/0/bbox/2",
        ),
        (document(annotation(bbox=[1, 2, 0, 3])), "box_empty", "/annotations/0/bbox"),
        (document(annotation(bbox=[1, 2, 3, -3])), "box_empty", "/annotations/0/bbox"),
        (document(annotation(bbox=[90, 2, 12, 3])), "box_outside_frame", "/annotations/0/bbox"),
        (document(annotation(bbox=[100.5, 2, 0.2, 3])), "box_outside_frame", "/annotations/0/bbox"),
        (
            document(annotation(segmentation=[OUTLINE, OUTLINE[:4]])),
            "polygon_too_short",
            "/annotations/0/segmentation/1",
        ),
        (
            document(annotation(segmentation=[[*OUTLINE, 5]])),
            "polygon_too_short",
            "/annotations/0/segmentation/0",
        ),
        (
            document(annotation(segmentation=[[*OUTLINE, 5, 51.5]])),
            "polygon_outside_frame",
            "/annotations/0/segmentation/0/7",
        ),
        (
            document(annotation(segmentation=RUN_LENGTHS, iscrowd=1)),
            "mask_store_needed",
            "/annotations/0/segmentation",
        ),
        (
            document(annotation(), annotation(segmentation=[OUTLINE])),
            "label_mixed",
            "/annotations/1",
        ),
        (document(images=[image(), image(file_name="c.jpg")]), "label_field_type", "/images/1/id"),
        (document(images=[image(), image(id=8)]), "label_field_type", "/images/1/file_name"),
        (document(images=[image(file_name="../a.jpg")]), "unsafe_name", "/images/0/file_name"),
        (document(images=[image(file_name="C:\\a.jpg")]), "unsafe_name", "/images/0/file_name"),
        (document(images=[image(width=0)]), "label_field_type", "/images/0/width"),
        (document(images=[image(height=10**30)]), "label_field_type", "/images/0/height"),
        (document(images=[]), "label_field_type", "/images"),
        (document(images={}), "label_field_type", "/images"),
        (document(categories=[{"id": 1, "name": " "}]), "label_field_type", "/categories/0/name"),
        (document(categories=[{"name": "spur"}]), "label_field_missing", "/categories/0/id"),
        ([], "label_field_type", "/"),
        (b'{"images": [\n}', "label_not_json", "line 2"),
    ],
)
def test_an_error_points_at_the_value_and_says_what_to_do(
    content: Any, code: str, where: str
) -> None:
    with pytest.raises(LabelError) as caught:
        read(content)
    error = caught.value
    assert (error.code, error.where, error.file) == (code, where, "all.json")
    assert error.hint


def test_a_class_that_the_data_set_does_not_have_matters_only_where_it_is_used() -> None:
    content = document(annotation())
    assert len(read(content, ("spur",))) == 2
    with pytest.raises(LabelError) as caught:
        read(document(annotation(category_id=2)), ("spur",))
    assert (caught.value.code, caught.value.where) == (
        "unknown_class",
        "/annotations/0/category_id",
    )


VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


@given(
    st.sampled_from(["images", "annotations", "categories"]),
    st.sampled_from(["id", "file_name", "width", "image_id", "bbox", "segmentation", "name"]),
    VALUES,
)
def test_no_value_in_any_place_raises_anything_but_its_error(
    entry: str, key: str, value: Any
) -> None:
    content = document(annotation(), annotation(image_id=3, segmentation=[OUTLINE]))
    content[entry][0][key] = value
    try:
        frames = read(content, None)
    except LabelError as error:
        assert (error.file, bool(error.where), bool(error.hint)) == ("all.json", True, True)  # noqa: PT017 - some values are refused, some are not.
        return
    assert len(frames) == 2


def test_importing_a_folder_in_place_says_where_a_coco_file_belongs(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(document()))
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(np.zeros((50, 100), np.uint8)))
    (problem,) = import_folder(tmp_path, classes=["spur"]).problems
    assert (problem.code, problem.file) == ("label_of_many_frames", "a.json")
