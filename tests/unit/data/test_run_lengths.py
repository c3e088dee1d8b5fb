import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as reference

from data import LabelError, MaskLabels
from data.coco import read_coco
from data.json_document import Place
from data.masks import read_mask
from data.run_lengths import read_run_lengths

WIDTH, HEIGHT = 40, 33
AREA = WIDTH * HEIGHT


def read(counts: Any, size: Any = (HEIGHT, WIDTH)) -> Any:
    value = {"size": list(size), "counts": counts}
    place = Place(value, "/segmentation", "all.json", "the annotation tool")
    return read_run_lengths(place, width=WIDTH, height=HEIGHT)


def runs(pixels: Any) -> list[int]:
    """Count runs of background and object in turn, down the columns, the slow way."""
    found, present = [0], False
    for pixel in pixels.ravel(order="F").tolist():
        if bool(pixel) != present:
            found.append(0)
            present = not present
        found[-1] += 1
    return found


@given(st.integers(0, 2**32 - 1), st.floats(0.001, 0.999))
def test_what_pycocotools_writes_is_read_to_the_same_pixels(seed: int, share: float) -> None:
    pixels = (np.random.default_rng(seed).random((HEIGHT, WIDTH)) < share).astype(np.uint8)
    pixels[0, 1] = 1
    written = reference.encode(np.asfortranarray(pixels))
    assert (read(written["counts"].decode(), written["size"]) == pixels).all()
    assert (read(runs(pixels)) == pixels).all()


@pytest.mark.parametrize(
    ("counts", "code", "where"),
    [
        ([1, 2], "label_field_type", "/counts"),
        ([AREA, 1], "label_field_type", "/counts"),
        ([-1, AREA + 1], "label_field_type", "/counts/0"),
        ([1.0, AREA - 1], "label_field_type", "/counts/0"),
        ([10**400], "label_field_type", "/counts"),
        ([], "label_field_type", "/counts"),
        ([AREA], "mask_empty", "/counts"),
        (None, "label_field_type", "/counts"),
        ("", "label_field_type", "/counts"),
        ("o", "label_field_type", "/counts"),
        ("o" * 20, "label_field_type", "/counts"),
        ("é", "label_field_type", "/counts"),
        ("O", "label_field_type", "/counts"),
    ],
)
def test_counts_that_can_not_be_meant_are_refused_at_their_place(
    counts: Any, code: str, where: str
) -> None:
    with pytest.raises(LabelError) as caught:
        read(counts)
    assert (caught.value.code, caught.value.where) == (code, f"/segmentation{where}")
    assert caught.value.hint


@pytest.mark.parametrize("size", [(WIDTH, HEIGHT), (HEIGHT,), (HEIGHT, WIDTH + 1)])
def test_a_mask_of_another_size_than_its_frame_is_refused(size: Any) -> None:
    with pytest.raises(LabelError) as caught:
        read([1, AREA - 1], size)
    assert (caught.value.code, caught.value.where) == ("label_size_mismatch", "/segmentation/size")


@given(st.text("0123OPQo~_`abc", max_size=30) | st.lists(st.integers(-2, AREA), max_size=6))
def test_no_counts_raise_anything_but_their_error(counts: Any) -> None:
    try:
        marked = read(counts)
    except LabelError as error:
        assert (error.file, bool(error.where), bool(error.hint)) == ("all.json", True, True)  # noqa: PT017 - some are refused, some are not.
        return
    assert marked.shape == (HEIGHT, WIDTH)


def document(*segmentations: tuple[int, Any]) -> bytes:
    content = {
        "images": [{"id": 0, "file_name": "a.png", "width": WIDTH, "height": HEIGHT}],
        "categories": [{"id": 1, "name": "spur"}, {"id": 2, "name": "short"}],
        "annotations": [
            {"image_id": 0, "category_id": number, "segmentation": found}
            for number, found in segmentations
        ],
    }
    return json.dumps(content).encode()


def column(index: int, count: int = 1) -> dict[str, Any]:
    before = index * HEIGHT
    lengths = [before, count * HEIGHT, AREA - before - count * HEIGHT]
    return {"size": [HEIGHT, WIDTH], "counts": lengths}


def masked(raw: bytes, classes: Any = ("short", "spur")) -> Any:
    kept: list[bytes] = []

    def keep(mask: bytes) -> str:
        kept.append(mask)
        return "blobs/x"

    (frame,) = read_coco(raw, name="all.json", classes=classes, keep_mask=keep)
    assert isinstance(frame.labels, MaskLabels)
    return frame, read_mask(kept[0], name="x", classes=classes)


def test_a_frame_of_masks_and_outlines_becomes_one_index_mask() -> None:
    outline = [[10, 10, 20, 10, 20, 20, 10, 20]]
    frame, mask = masked(document((1, column(2)), (1, column(2, 2)), (2, outline)))
    assert frame.labels.values == (1, 2)
    assert frame.drawn == 1
    assert (mask[:, 2:4] == 2).all()
    assert (mask[11:19, 11:19] == 1).all()
    assert int((mask == 2).sum()) == 2 * HEIGHT


@pytest.mark.parametrize(
    ("second", "code", "where"),
    [
        ((2, column(2)), "mask_overlap", "/annotations/1/segmentation"),
        ((2, [[1, 1, 9, 1, 9, 9]]), "mask_overlap", "/annotations/1/segmentation"),
        (
            (1, {"size": [1, 1], "counts": [0, 1]}),
            "label_size_mismatch",
            "/annotations/1/segmentation/size",
        ),
        (
            (1, {"size": [HEIGHT, WIDTH]}),
            "label_field_missing",
            "/annotations/1/segmentation/counts",
        ),
    ],
)
def test_what_an_index_mask_can_not_hold_is_refused_at_the_later_annotation(
    second: Any, code: str, where: str
) -> None:
    with pytest.raises(LabelError) as caught:
        masked(document((1, column(2)), second))
    assert (caught.value.code, caught.value.where) == (code, where)


def test_without_declared_classes_a_number_would_stand_for_nothing() -> None:
    with pytest.raises(LabelError) as caught:
        masked(document((1, column(2))), None)
    assert caught.value.code == "label_classes_needed"
