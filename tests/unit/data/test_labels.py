from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import (
    Box,
    BoxLabels,
    DataError,
    GoodFrame,
    LabelError,
    MaskLabels,
    Polygon,
    PolygonLabels,
    is_defective,
    labels_from_mask,
    labels_from_polygons,
    rasterize,
)
from data.labels import labelled_defects
from data.storage import sha256_hex

CLASSES = ("scratch", "pit")


def test_a_polygon_lands_in_its_own_class_and_place() -> None:
    square = Polygon("pit", ((10, 20), (30, 20), (30, 25), (10, 25)))
    planes = rasterize(PolygonLabels((square,)), 50, 40, CLASSES, None)
    assert planes.shape == (40, 50, 2)
    assert not planes[:, :, 0].any()
    rows, columns = np.nonzero(planes[:, :, 1])
    # The outline runs along pixel edges; the pixels under it belong to the defect.
    assert (columns.min(), rows.min()) in {(9, 19), (10, 20)}
    assert (columns.max(), rows.max()) in {(29, 24), (30, 25)}


def test_a_box_covers_the_pixels_that_it_touches() -> None:
    labels = BoxLabels((Box("pit", 10, 20, 3, 2), Box("scratch", 4.5, 6.25, 1, 0.5)))
    planes = rasterize(labels, 50, 40, CLASSES, None)
    rows, columns = np.nonzero(planes[:, :, 1])
    assert (set(rows.tolist()), set(columns.tolist())) == ({20, 21}, {10, 11, 12})
    rows, columns = np.nonzero(planes[:, :, 0])
    assert (set(rows.tolist()), set(columns.tolist())) == ({6}, {4, 5})
    assert labelled_defects(labels, CLASSES) == [("pit", 6.0), ("scratch", 0.5)]
    with pytest.raises(LabelError, match="'dent' is none of"):
        rasterize(BoxLabels((Box("dent", 1, 1, 1, 1),)), 50, 40, CLASSES, None)


@given(
    width=st.integers(1, 30),
    height=st.integers(1, 30),
    x=st.floats(0, 60),
    y=st.floats(0, 60),
)
def test_a_drawn_area_is_the_outlines_area_plus_at_most_its_border(
    width: int, height: int, x: float, y: float
) -> None:
    corners = ((x, y), (x + width, y), (x + width, y + height), (x, y + height))
    polygon = Polygon("pit", corners)
    drawn = int(rasterize(PolygonLabels((polygon,)), 100, 100, ["pit"], None).sum())
    assert polygon.area_px == pytest.approx(width * height)
    assert width * height <= drawn <= (width + 2) * (height + 2)


def test_the_thinnest_scratch_keeps_a_line_of_pixels() -> None:
    hair = Polygon("scratch", ((5, 5), (45, 5), (45, 5.1)))
    assert rasterize(PolygonLabels((hair,)), 50, 40, CLASSES, None)[:, :, 0].sum() >= 40


def stored_mask(root: Path) -> MaskLabels:
    mask = np.zeros((40, 50), np.uint8)
    mask[3:6, 3:6] = 2
    mask[6, 6] = 2
    mask[20, 20:30] = 1
    mask[30, 20:30] = 1
    raw = bytes(imagecodecs.png_encode(mask))
    (root / "m.png").write_bytes(raw)
    labels = labels_from_mask(mask, file="m.png", sha256=sha256_hex(raw))
    assert isinstance(labels, MaskLabels)
    return labels


def test_a_mask_becomes_one_plane_a_class(tmp_path: Path) -> None:
    labels = stored_mask(tmp_path)
    planes = rasterize(labels, 50, 40, CLASSES, tmp_path)
    assert planes.sum(axis=(0, 1)).tolist() == [20, 10]
    assert set(np.unique(planes)) == {0, 1}


def test_a_masks_defects_are_its_connected_regions(tmp_path: Path) -> None:
    labels = stored_mask(tmp_path)
    assert labels.values == (1, 2)
    assert sorted(labels.defects) == [(1, 10), (1, 10), (2, 10)]


def test_a_mask_that_changed_since_the_version_was_frozen_is_refused(tmp_path: Path) -> None:
    labels = stored_mask(tmp_path)
    (tmp_path / "m.png").write_bytes(b"something else")
    with pytest.raises(DataError) as caught:
        rasterize(labels, 50, 40, CLASSES, tmp_path)
    assert caught.value.code == "file_changed"
    (tmp_path / "m.png").unlink()
    with pytest.raises(DataError) as caught:
        rasterize(labels, 50, 40, CLASSES, tmp_path)
    assert caught.value.code == "file_missing"


def test_a_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LabelError) as caught:
        rasterize(stored_mask(tmp_path), 51, 40, CLASSES, tmp_path)
    assert caught.value.code == "label_size_mismatch"


def test_a_class_that_the_data_set_does_not_have_is_refused() -> None:
    labels = PolygonLabels((Polygon("dent", ((0, 0), (9, 0), (9, 9))),))
    with pytest.raises(LabelError, match="dent"):
        rasterize(labels, 50, 40, CLASSES, None)


def test_labels_without_a_defect_are_a_good_frame() -> None:
    empty = np.zeros((40, 50), np.uint8)
    assert labels_from_polygons([]) == GoodFrame()
    assert labels_from_mask(empty, file="m.png", sha256="") == GoodFrame()
    assert not is_defective(GoodFrame())
    assert rasterize(GoodFrame(), 50, 40, CLASSES, None).shape == (40, 50, 2)


def test_a_negative_zero_is_kept_as_zero_so_that_equal_labels_have_equal_bytes() -> None:
    assert str(Box("pit", -0.0, 1, 2, 3).x) == "0.0"
    assert str(Polygon("pit", ((-0.0, 1), (2, 1), (2, 2))).points[0][0]) == "0.0"


def test_a_mask_can_not_be_drawn_without_the_root_that_its_path_is_relative_to() -> None:
    with pytest.raises(LabelError) as caught:
        rasterize(MaskLabels("blobs/m", "0" * 64, (1,)), 50, 40, CLASSES, None)
    assert (caught.value.code, caught.value.file) == ("label_missing", "blobs/m")
