"""What is derived from the training boxes suits them, and what is asked for is kept or refused."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from models import DetectionSpec, ModelSpec, SpecError
from models.detection_spec import anchor_ratios, anchor_sizes_px, level_strides_px

SIDES = st.floats(1, 2000)
BOXES = st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=50)


@given(boxes=BOXES, count=st.integers(2, 6))
def test_anchors_at_least_double_from_map_to_map_and_reach_the_largest_boxes(
    boxes: list[tuple[float, float]], count: int
) -> None:
    sizes = anchor_sizes_px(boxes, count)
    assert len(sizes) == count
    # Sizes are whole pixels, so that a doubling may come out one short.
    assert all(after >= 2 * before - 1 for before, after in itertools.pairwise(sizes))
    largest = max((width * height) ** 0.5 for width, height in boxes)
    if len(boxes) == 1:
        assert sizes[-1] >= largest * 0.99


@given(boxes=BOXES)
def test_anchor_ratios_hold_the_usual_range_and_the_boxes_up_to_ten(
    boxes: list[tuple[float, float]],
) -> None:
    ratios = anchor_ratios(boxes)
    assert list(ratios) == sorted(set(ratios))
    assert 1.0 in ratios
    assert 0.1 <= ratios[0] <= 0.5
    assert 2.0 <= ratios[-1] <= 10.0


def test_flat_and_tall_scratches_get_anchors_of_their_own_shape() -> None:
    flat = [(80.0, 10.0)] * 20
    assert anchor_ratios(flat)[0] == pytest.approx(1 / 8)
    assert anchor_ratios(flat)[-1] == 2.0
    tall = [(10.0, 60.0)] * 20
    assert anchor_ratios(tall)[-1] == pytest.approx(6)


def test_small_boxes_ask_a_one_stage_detector_for_its_finest_map() -> None:
    small = [(9.0, 7.0)] * 10
    assert DetectionSpec().settle("retinanet", small).finest_stride_px == 4
    assert DetectionSpec().settle("retinanet", [(90.0, 70.0)] * 10).finest_stride_px == 8
    assert DetectionSpec().settle("fasterrcnn", [(90.0, 70.0)] * 10).finest_stride_px == 4


def test_what_is_asked_for_is_kept_and_settling_twice_changes_nothing() -> None:
    asked = DetectionSpec(anchor_sizes_px=(5, 9, 20, 50, 90), anchor_ratios=(1.0,), nms_iou=0.3)
    settled = asked.settle("fasterrcnn", [(30.0, 40.0)] * 10)
    assert settled == asked.model_copy(update={"finest_stride_px": 4})
    assert settled.settle("fasterrcnn", [(3.0, 4.0)] * 10) == settled


def test_without_a_box_the_published_anchors_are_taken() -> None:
    settled = DetectionSpec().settle("fasterrcnn", [])
    assert settled.anchor_sizes_px == (32, 64, 128, 256, 512)
    assert settled.anchor_ratios == (0.5, 1.0, 2.0)


def test_anchors_that_do_not_fit_the_maps_are_refused_with_the_count_that_would() -> None:
    with pytest.raises(SpecError, match=r"has 2 sizes.*has 6 maps") as refused:
        DetectionSpec(anchor_sizes_px=(8, 16), finest_stride_px=4).settle("retinanet", [])
    assert refused.value.code == "anchors_misfit"
    with pytest.raises(ValidationError, match="must grow"):
        DetectionSpec(anchor_sizes_px=(16, 8))


def test_maps_double_in_stride_up_to_the_coarsest_of_the_architecture() -> None:
    assert level_strides_px("fasterrcnn", 4) == (4, 8, 16, 32, 64)
    assert level_strides_px("retinanet", 8) == (8, 16, 32, 64, 128)
    assert level_strides_px("fcos", 4) == (4, 8, 16, 32, 64, 128)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"architecture": "unet", "detection": {}}, "detection"),
        ({"architecture": "fasterrcnn", "decoder_channels": [8, 8, 8, 8, 8]}, "decoder_channels"),
        ({"architecture": "retinanet", "encoder_depth": 4}, "encoder_depth"),
        ({"architecture": "fcos", "detection": {"anchor_ratios": [1.0]}}, "anchors"),
        ({"architecture": "fcos", "detection": {"pyramid_channels": 48}}, "pyramid_channels"),
        ({"architecture": "fcos", "detection": {"nms": 0.5}}, "nms"),
    ],
)
def test_what_an_architecture_does_not_take_is_refused_by_its_name(
    fields: dict[str, object], named: str
) -> None:
    with pytest.raises(ValidationError, match=named):
        ModelSpec.model_validate(fields)
