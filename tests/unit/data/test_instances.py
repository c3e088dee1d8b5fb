"""Boxes after variation: of the pixels that are to be seen, one a defect, clipped and dropped."""

import numpy as np

from data import Box, BoxLabels, CropSpec, Polygon, PolygonLabels
from data.instances import draw_instances, visible_boxes
from data.window import cut_window

CLASSES = ("pit", "scratch")


def test_overlapping_boxes_stay_two_and_come_back_as_they_were_drawn() -> None:
    labels = BoxLabels((Box("pit", 10, 10, 30, 20), Box("scratch", 20, 5, 8, 40)))
    instances = draw_instances(labels, 80, 60, CLASSES, None)
    boxes = visible_boxes(instances, min_visible_share=1.0)
    found = {(b.class_name, b.x, b.y, b.width, b.height, b.visible_share) for b in boxes}
    assert found == {("pit", 10, 10, 30, 20, 1.0), ("scratch", 20, 5, 8, 40, 1.0)}


def test_a_box_cut_at_the_edge_is_clipped_and_dropped_below_its_share() -> None:
    labels = BoxLabels((Box("pit", 0, 0, 40, 10), Box("pit", 30, 30, 20, 20)))
    instances = draw_instances(labels, 80, 60, CLASSES, None)
    cut = instances.with_layers(instances.layers[:, 31:63])
    boxes = visible_boxes(cut, min_visible_share=0.25)
    assert [(b.x, b.y, b.width, b.height, b.visible_share) for b in boxes] == [
        (0, 30, 19, 20, 0.95)
    ]
    assert len(visible_boxes(cut, min_visible_share=0.2)) == 2


def test_boxes_hold_exactly_the_labelled_pixels_of_a_turned_window() -> None:
    # Far enough from the frame's edge that no window shows a mirrored copy.
    scratch = Polygon("scratch", ((125, 125), (230, 190), (232, 188), (128, 123)))
    pit = Polygon("pit", ((180, 130), (195, 132), (190, 145)))
    instances = draw_instances(PolygonLabels((scratch, pit)), 360, 320, CLASSES, None)
    mask = (instances.layers > 0).astype(np.uint8)
    crop = CropSpec(height_px=64, width_px=64, defect_rate=1.0)
    for seed in range(30):
        _, (seen, layers) = cut_window(
            mask * 255,
            [mask, instances.layers],
            crop,
            np.random.default_rng(seed),
            rotation_deg=40,
        )
        np.testing.assert_array_equal(seen, (layers > 0).astype(np.uint8))
        boxes = visible_boxes(instances.with_layers(layers), min_visible_share=0.0)
        # The window's edge may cut crumbs of a stair's corner off; the rest stays one piece.
        pieces = [box.class_name for box in boxes if box.visible_share > 0.01]
        assert len(set(pieces)) == len(pieces)
        within = np.zeros(seen.shape[:2], np.bool_)
        for box in boxes:
            region = (slice(box.y, box.y + box.height), slice(box.x, box.x + box.width))
            within[region] = True
            number = instances.class_names.index(box.class_name) + 1
            shown = (layers[region] == number).any(axis=2)
            assert shown[0].any()
            assert shown[-1].any()
            assert shown[:, 0].any()
            assert shown[:, -1].any()
        assert not seen[:, :, 0][~within].any()
