"""Labels of resized frames: nothing vanishes in silence, and large defects keep their size."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import Box, BoxLabels, Frame, GoodFrame, Item, Polygon, PolygonLabels
from data.instances import VisibleBox, boxes_of_labels
from models import resized_size
from training.detection_preparation import MeasuredBoxes
from training.resizing import (
    LabelFate,
    count_box_fates,
    count_label_fates,
    label_fate,
    resize_frame,
    resize_mask,
)

FACTORS = (0.5, 0.25, 0.3, 0.7)


def one_plane(height: int, width: int) -> np.ndarray:
    return np.zeros((height, width, 1), np.uint8)


def regions(plane: np.ndarray) -> int:
    return int(cv2.connectedComponents(np.ascontiguousarray(plane), connectivity=8)[0]) - 1


@pytest.mark.parametrize("factor", FACTORS)
@given(row=st.integers(0, 46), column=st.integers(0, 60))
def test_a_defect_of_one_pixel_survives_wherever_it_lies(
    factor: float, row: int, column: int
) -> None:
    mask = one_plane(47, 61)
    mask[row, column] = 1
    resized = resize_mask(mask, resized_size(47, 61, factor))
    assert regions(resized[:, :, 0]) == 1
    assert label_fate(mask[:, :, 0], resized[:, :, 0]) == LabelFate(labelled=1)


@given(
    data=st.data(),
    factor=st.sampled_from(FACTORS),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
def test_no_labelled_pixel_is_further_than_a_neighbour_from_a_resized_one_and_losses_are_counted(
    data: st.DataObject, factor: float, size: tuple[int, int]
) -> None:
    mask = one_plane(*size)
    for _ in range(data.draw(st.integers(0, 5))):
        top, left = data.draw(st.integers(0, size[0] - 1)), data.draw(st.integers(0, size[1] - 1))
        mask[
            top : top + data.draw(st.integers(1, 9)), left : left + data.draw(st.integers(1, 9))
        ] = 1
    small = resized_size(*size, factor)
    resized = resize_mask(mask, small)
    assert resized.dtype == np.uint8
    assert set(np.unique(resized)) <= {0, 1}
    reached = cv2.dilate(resized[:, :, 0], np.ones((3, 3), np.uint8))
    rows, columns = np.nonzero(mask[:, :, 0])
    cells = (
        ((rows + 0.5) * small[0] / size[0]).astype(int),
        ((columns + 0.5) * small[1] / size[1]).astype(int),
    )
    assert reached[cells].all()
    assert resized.any() == mask.any()
    fate = label_fate(mask[:, :, 0], resized[:, :, 0])
    assert fate.labelled == regions(mask[:, :, 0])
    assert fate.labelled - fate.vanished - fate.merged <= regions(resized[:, :, 0])


def test_a_scratch_keeps_its_length_and_stays_one_with_the_stain_that_it_leaves() -> None:
    mask = one_plane(96, 96)
    mask[40:56, 8:24] = 1
    mask[47, 24:90] = 1
    resized = resize_mask(mask, (24, 24))[:, :, 0]
    assert regions(resized) == 1
    columns = np.flatnonzero(resized.any(axis=0))
    assert (columns[0], columns[-1]) == (2, 22)


@given(st.integers(8, 40), st.integers(20, 50))
def test_each_side_of_a_large_defect_moves_by_half_a_resized_pixel_at_most(
    start: int, length: int
) -> None:
    mask = one_plane(96, 96)
    mask[start : start + length, start : start + length] = 1
    rows = np.flatnonzero(resize_mask(mask, (24, 24))[:, :, 0].any(axis=1))
    assert abs(4 * rows[0] - start) <= 2
    assert abs(4 * (rows[-1] + 1) - (start + length)) <= 2


def test_what_vanishes_beside_another_defect_and_what_runs_into_one_is_counted() -> None:
    mask = one_plane(32, 32)
    mask[8:16, 8:16] = 1
    mask[17, 17] = 1
    mask[8:16, 17:24] = 1
    resized = resize_mask(mask, (8, 8))
    assert label_fate(mask[:, :, 0], resized[:, :, 0]) == LabelFate(3, vanished=1, merged=1)


def test_classes_are_resized_apart() -> None:
    mask = np.zeros((16, 16, 2), np.uint8)
    mask[0:8, :, 0] = 1
    mask[8, 3, 1] = 1
    resized = resize_mask(mask, (4, 4))
    np.testing.assert_array_equal(resized[:, :, 0], [[1] * 4] * 2 + [[0] * 4] * 2)
    assert resized[:, :, 1].sum() == 1


def test_at_native_size_nothing_is_touched_and_boxes_go_with_their_frame() -> None:
    frame = Frame("a.png", np.zeros((8, 8, 1), np.uint8), one_plane(8, 8))
    assert resize_frame(frame, 1.0) is frame
    half = resize_frame(frame, 0.5)
    assert (half.pixels.shape, half.mask.shape) == ((4, 4, 1), (4, 4, 1))
    boxes = (VisibleBox("pit", 1, 2, 2, 1, 1.0), VisibleBox("stain", 0, 0, 8, 8, 0.5))
    boxed = resize_frame(Frame("a.png", frame.pixels, frame.mask, boxes), 0.5)
    # Every resized pixel that a box touches.
    assert boxed.boxes == (VisibleBox("pit", 0, 1, 2, 1, 1.0), VisibleBox("stain", 0, 0, 4, 4, 0.5))


def test_labels_of_all_defective_frames_are_counted_without_reading_a_picture(
    tmp_path: Path,
) -> None:
    speck = Polygon("pit", ((40.0, 40.0), (41.0, 40.0), (41.0, 41.0)))
    plate = Polygon("pit", ((8.0, 8.0), (24.0, 8.0), (24.0, 24.0), (8.0, 24.0)))

    def item(name: str, labels: PolygonLabels | GoodFrame) -> Item:
        return Item(name, name, name, "0" * 64, 64, 48, 1, 8, None, "train", labels)

    items = [
        item("a.png", PolygonLabels((speck, plate))),
        item("b.png", GoodFrame()),
        item("c.png", PolygonLabels((speck,))),
    ]
    counted = count_label_fates(items, tmp_path, ("pit", "stain"), 0.25)
    assert (counted.frames_counted, counted.frames_defective) == (2, 2)
    assert counted.by_class == {"pit": LabelFate(labelled=3), "stain": LabelFate()}


def test_a_detector_s_boxes_are_counted_and_those_below_a_resized_pixel_are_told() -> None:
    boxes = BoxLabels((Box("pit", 8, 8, 3, 20), Box("pit", 30, 8, 4, 4), Box("pit", 30, 8, 4, 4)))
    drawn = boxes_of_labels(boxes, 64, 48, ("pit", "stain"), None)
    counted = count_box_fates(MeasuredBoxes(drawn, 1, 1), ("pit", "stain"), 0.25)
    assert (counted.labels, counted.frames_counted, counted.frames_defective) == ("boxes", 1, 1)
    assert counted.by_class == {"pit": LabelFate(labelled=3, vanished=1), "stain": LabelFate()}
