from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import GoodFrame, LabelError, LayoutError, import_folder, rasterize
from data.masks import encode_mask, read_class_mask, read_mask
from data.mvtec import mvtec_sample
from data.recognition import recognize_layout
from data.storage import sha256_hex

GOOD = ("cable/train/good/000.png", "cable/test/good/000.png")
CUT = ("cable/test/cut/000.png", "cable/ground_truth/cut/000_mask.png")
BENT = ("cable/test/bent/000.png", "cable/ground_truth/bent/000_mask.png")


def write(root: Path, name: str, pixels: Any) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(imagecodecs.png_encode(pixels))


@pytest.fixture
def product(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for name in (*GOOD, CUT[0], BENT[0]):
        write(tmp_path, name, random.integers(0, 256, (40, 50), dtype=np.uint8))
    for row, name in enumerate((CUT[1], BENT[1])):
        mask = np.zeros((40, 50), np.uint8)
        mask[row : row + 2, 5:9] = 255
        write(tmp_path, name, mask)
    (tmp_path / "cable/license.txt").write_text("CC")
    return tmp_path


def keeper(root: Path) -> Any:
    def keep(raw: bytes) -> str:
        (root / sha256_hex(raw)).write_bytes(raw)
        return sha256_hex(raw)

    return keep


def test_good_folders_declare_good_frames_and_defect_folders_name_the_class(
    product: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    made = tmp_path_factory.mktemp("made")
    imported = import_folder(product, store_mask=keeper(made))
    assert imported.problems == ()
    assert (imported.layout.name, imported.classes) == ("mvtec", ("bent", "cut"))
    assert imported.ignored == ("cable/license.txt",)
    labels = {item.name: item.labels for item in imported.items}
    assert labels[GOOD[0]] == labels[GOOD[1]] == GoodFrame()
    planes = rasterize(labels[CUT[0]], 50, 40, imported.classes, made)
    assert np.argwhere(planes.any(axis=(0, 1))).tolist() == [[1]]
    assert int(planes.sum()) == 8


def test_without_a_place_for_made_masks_they_are_problems_and_good_frames_stay(
    product: Path,
) -> None:
    imported = import_folder(product)
    assert {error.code for error in imported.problems} == {"mask_store_needed"}
    assert [item.name for item in imported.items] == sorted(GOOD)


def test_a_defective_frame_without_its_mask_is_not_taken_as_good(product: Path) -> None:
    (product / BENT[1]).unlink()
    imported = import_folder(product, classes=["cut"], store_mask=keeper(product.parent))
    assert [(error.code, error.file) for error in imported.problems] == [("missing_label", BENT[0])]


def test_a_defect_folder_that_is_no_declared_class_is_refused(product: Path) -> None:
    with pytest.raises(LabelError) as caught:
        import_folder(product, classes=["cut"])
    assert (caught.value.code, caught.value.file) == ("classes_differ", "ground_truth")


def test_masks_without_good_training_frames_are_no_such_set_unless_named() -> None:
    with pytest.raises(LayoutError, match="found: masks"):
        recognize_layout(CUT, {}, named="mvtec")
    assert recognize_layout([*GOOD, *CUT], {}).name == "mvtec"


def test_only_the_layouts_own_files_have_a_part_in_it() -> None:
    assert mvtec_sample("cable/readme.txt") is None
    assert mvtec_sample("cable/ground_truth/cut/000.png") is None
    assert mvtec_sample("000.png") is None


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([1, 255]),
    st.sampled_from(["a", "b", "c"]),
)
def test_a_class_mask_marks_the_same_pixels_with_its_class(
    seed: int, value: int, class_name: str
) -> None:
    pixels = np.random.default_rng(seed).integers(0, 2, (32, 64), dtype=np.uint8)
    raw = bytes(imagecodecs.png_encode(pixels * np.uint8(value)))
    classes = ["a", "b", "c"]
    mask = read_class_mask(raw, name="m.png", class_name=class_name, classes=classes)
    assert (mask == pixels * (classes.index(class_name) + 1)).all()
    assert (read_mask(encode_mask(mask), name="m.png", classes=classes) == mask).all()


def test_a_class_mask_with_other_values_is_refused_at_its_pixel() -> None:
    pixels = np.zeros((32, 64), np.uint8)
    pixels[3, 5] = 128
    raw = bytes(imagecodecs.png_encode(pixels))
    with pytest.raises(LabelError) as caught:
        read_class_mask(raw, name="m.png", class_name="a", classes=["a", "b"])
    assert (caught.value.code, caught.value.where) == ("mask_value", "pixel (x=5, y=3)")
