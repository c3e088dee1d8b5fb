from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import LabelError, LayoutError, MaskLabels, import_folder
from data.class_masks import ClassMaskFile, ClassMasks, merge_class_masks
from data.layout import SampleKey
from data.masks import read_mask
from data.recognition import recognize_layout
from data.storage import sha256_hex

CLASSES = ("pit", "scratch", "edge_pit")
SHAPE = (40, 50)


def png(pixels: Any) -> bytes:
    return bytes(imagecodecs.png_encode(pixels))


def plane(row: int, value: int = 255, shape: tuple[int, int] = SHAPE) -> Any:
    pixels = np.zeros(shape, np.uint8)
    pixels[row, 3:9] = value
    return pixels


def part(class_name: str, pixels: Any) -> ClassMaskFile:
    return ClassMaskFile(f"masks/{class_name}/x.png", class_name, lambda: png(pixels))


@given(st.integers(0, 2**32 - 1), st.permutations(CLASSES), st.sampled_from([1, 255]))
def test_planes_written_one_a_file_are_merged_to_the_same_index_mask_in_any_order(
    seed: int, order: list[str], value: int
) -> None:
    indices = np.random.default_rng(seed).integers(0, 4, SHAPE, dtype=np.uint8)
    files = [
        part(name, (indices == CLASSES.index(name) + 1).astype(np.uint8) * np.uint8(value))
        for name in order
    ]
    assert (merge_class_masks(files, classes=CLASSES) == indices).all()
    some = merge_class_masks(files[1:], classes=CLASSES)
    absent = CLASSES.index(order[0]) + 1
    assert (some == np.where(indices == absent, 0, indices)).all()


@pytest.mark.parametrize(
    ("second", "code", "where", "named"),
    [
        (part("pit", plane(7)), "mask_overlap", "pixel (x=3, y=7)", "masks/scratch/x.png"),
        (part("pit", plane(2, shape=(41, 50))), "label_size_mismatch", None, "50x41 px"),
        (part("pit", plane(2, 128)), "mask_value", "pixel (x=3, y=2)", "128"),
        (part("scratch", plane(2)), "duplicate_label", None, "masks/scratch/x.png"),
    ],
)
def test_what_can_not_be_merged_is_refused_at_its_pixel_with_both_files(
    second: ClassMaskFile, code: str, where: str | None, named: str
) -> None:
    with pytest.raises((LabelError, LayoutError)) as caught:
        merge_class_masks([part("scratch", plane(7)), second], classes=CLASSES)
    assert (caught.value.code, caught.value.file) == (code, second.name)
    assert caught.value.where == where
    assert named in caught.value.detail
    assert caught.value.hint


@pytest.mark.parametrize(
    ("name", "class_name", "key"),
    [
        ("masks/pit/x.png", "pit", "x"),
        ("masks/pit/lot/a.png", "pit", "lot/a"),
        ("masks/lot/pit/a.png", "pit", "lot/a"),
        ("lot/labels/pit/a.png", "pit", "lot/a"),
        ("masks/x_pit.png", "pit", "x"),
        ("masks/x-pit.png", "pit", "x"),
        ("masks/x_pit_mask.png", "pit", "x"),
        ("masks/lot/a_pit.png", "pit", "lot/a"),
        ("masks/x_edge_pit.png", "edge_pit", "x"),
        ("masks/y_edge_pit.png", "pit", "y_edge"),
        ("masks/unseen_edge_pit.png", "edge_pit", "unseen"),
        ("masks/pit/unseen.png", "pit", "unseen"),
    ],
)
def test_the_folder_or_the_end_of_a_name_says_the_class_and_the_frame_decides(
    name: str, class_name: str, key: str
) -> None:
    masks = ClassMasks(frozenset({"x", "lot/a", "y_edge"}), CLASSES)
    assert masks.sample(name) == SampleKey("mask", key, class_name=class_name)


def test_a_mask_that_pairs_as_it_is_has_no_part_in_the_layout() -> None:
    masks = ClassMasks(frozenset({"pit/x", "x", "x_pit"}), CLASSES, is_named=True)
    assert masks.sample("masks/pit/x.png") is None
    assert masks.sample("masks/x_pit.png") is None
    assert masks.sample("notes.json") is None


def test_files_beside_frames_are_masks_only_where_the_layout_is_named() -> None:
    names = ["a.png", "a_pit.png"]
    assert recognize_layout(names, {}, declared=CLASSES).name is None
    named = recognize_layout(names, {}, declared=CLASSES, named="class_masks")
    assert [name for name in names if named.is_frame(name)] == ["a.png"]
    assert named.sample("a_pit.png") == SampleKey("mask", "a", class_name="pit")


def test_frames_sorted_by_lot_keep_their_index_masks() -> None:
    names = ["images/pit/a.png", "masks/pit/a.png", "images/a.png", "masks/a.png"]
    assert recognize_layout(names, {}, declared=CLASSES).name == "masks"


def test_an_index_mask_beside_masks_of_one_class_is_asked_about() -> None:
    names = ["images/a.png", "images/b.png", "masks/a.png", "masks/pit/b.png"]
    with pytest.raises(LayoutError) as caught:
        recognize_layout(names, {}, declared=CLASSES)
    assert caught.value.code == "layout_ambiguous"
    named = recognize_layout(names, {}, declared=CLASSES, named="class_masks")
    assert any("masks/a.png" in note for note in named.notes)


def test_the_callers_word_makes_index_masks_of_what_looks_like_a_mask_a_class() -> None:
    names = ["images/a.png", "masks/pit/a.png"]
    layout = recognize_layout(names, {}, declared=CLASSES, named="masks")
    assert layout.sample("masks/pit/a.png") == SampleKey("mask", "pit/a")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for name in ("images/a.png", "images/lot/b.png"):
        write(tmp_path, name, random.integers(0, 256, SHAPE, dtype=np.uint8))
    write(tmp_path, "masks/pit/a.png", plane(1))
    write(tmp_path, "masks/scratch/a.png", plane(2, 1))
    write(tmp_path, "masks/lot/b_scratch.png", plane(4))
    return tmp_path


def write(root: Path, name: str, pixels: Any) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(pixels))


def test_a_folder_with_a_mask_a_class_has_one_index_mask_a_frame(folder: Path) -> None:
    kept: dict[str, bytes] = {}

    def keep(raw: bytes) -> str:
        kept[sha256_hex(raw)] = raw
        return sha256_hex(raw)

    imported = import_folder(folder, classes=CLASSES, store_mask=keep)
    assert imported.problems == ()
    assert imported.layout.evidence == "class_masks: 3 mask pictures of one class each"
    assert any("merged into an index mask" in note for note in imported.layout.notes)
    labels = {item.name: item.labels for item in imported.items}
    first = labels["images/a.png"]
    assert isinstance(first, MaskLabels)
    assert first.values == (1, 2)
    mask = read_mask(kept[first.sha256], name="made", classes=CLASSES)
    assert (mask == np.minimum(plane(1), 1) + plane(2, 2)).all()
    without = import_folder(folder, classes=CLASSES)
    assert {error.code for error in without.problems} == {"mask_store_needed"}


def test_masks_of_a_class_nobody_declared_are_refused_with_their_folder(folder: Path) -> None:
    with pytest.raises(LabelError) as caught:
        import_folder(folder, classes=["scratch", "dent"])
    assert (caught.value.code, caught.value.file) == ("unknown_class", "masks/pit")
    assert "'pit'" in caught.value.detail
    assert "scratch, dent" in caught.value.detail
    with pytest.raises(LabelError) as caught:
        import_folder(folder, classes=["pit"])
    assert caught.value.file in {"masks/scratch", "masks/lot/b_scratch.png"}


def test_a_mask_a_class_needs_declared_classes(folder: Path) -> None:
    with pytest.raises(LayoutError) as caught:
        import_folder(folder)
    assert caught.value.code == "classes_needed"
