import json
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest

from data import GoodFrame, LayoutError, Manifest, MaskLabels, PolygonLabels, import_folder

RNG = np.random.default_rng(0)


def write_png(path: Path, pixels: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(imagecodecs.png_encode(pixels))


def frame() -> Any:
    return RNG.integers(0, 256, (40, 50), dtype=np.uint8)


def mask(value: int) -> Any:
    pixels = np.zeros((40, 50), np.uint8)
    pixels[5:9, 5:9] = value
    return pixels


def write_labelme(path: Path, label: str, **changes: Any) -> None:
    shape = {"label": label, "points": [[1, 1], [9, 1], [1, 9]], "shape_type": "polygon"}
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"imagePath": "x", "imageWidth": 50, "imageHeight": 40, "shapes": [shape]} | changes
    path.write_text(json.dumps(content))


def codes(imported: Any) -> dict[str, str]:
    return {error.file: error.code for error in imported.problems}


def test_masks_become_labels_and_an_empty_mask_a_good_frame(tmp_path: Path) -> None:
    for name, value in (("a", 1), ("b", 0)):
        write_png(tmp_path / f"images/{name}.png", frame())
        write_png(tmp_path / f"masks/{name}_mask.png", mask(value))
    imported = import_folder(tmp_path, classes=None, unlabelled="reject", root=None)
    assert imported.problems == ()
    assert imported.classes == ("defect",)
    bad, good = imported.items
    assert isinstance(bad.labels, MaskLabels)
    assert (bad.labels.file, bad.labels.defects) == ("masks/a_mask.png", ((1, 16),))
    assert good.labels == GoodFrame()


def test_paths_are_relative_to_the_root_and_names_to_the_folder(tmp_path: Path) -> None:
    write_png(tmp_path / "set/images/a.png", frame())
    write_png(tmp_path / "set/masks/a.png", mask(1))
    imported = import_folder(tmp_path / "set", classes=["pit"], root=tmp_path)
    assert imported.items[0].name == "images/a.png"
    assert imported.items[0].file == "set/images/a.png"
    Manifest("segmentation", imported.classes, imported.items)
    with pytest.raises(LayoutError) as caught:
        import_folder(tmp_path / "set", root=tmp_path / "other")
    assert caught.value.code == "folder_outside_root"


def test_classes_come_from_the_labelme_files_in_alphabetical_order(tmp_path: Path) -> None:
    for name, label in (("a", "scratch"), ("b", "pit")):
        write_png(tmp_path / f"{name}.png", frame())
        write_labelme(tmp_path / f"{name}.json", label)
    imported = import_folder(tmp_path)
    assert imported.classes == ("pit", "scratch")
    assert all(isinstance(item.labels, PolygonLabels) for item in imported.items)


def test_every_bad_file_is_listed_and_the_good_ones_are_kept(tmp_path: Path) -> None:
    for name in "abcdef":
        write_png(tmp_path / f"images/{name}.png", frame())
    for name in "abcde":
        write_labelme(tmp_path / f"labels/{name}.json", "pit")
    write_labelme(tmp_path / "labels/b.json", "pit", imageWidth=51)
    (tmp_path / "labels/c.json").write_text("{")
    (tmp_path / "images/d.png").write_bytes((tmp_path / "images/d.png").read_bytes()[:-20])
    (tmp_path / "images/e.png").write_bytes((tmp_path / "images/a.png").read_bytes())
    write_labelme(tmp_path / "labels/orphan.json", "pit")
    (tmp_path / "README.md").write_text("about")
    (tmp_path / ".DS_Store").write_text("litter")
    imported = import_folder(tmp_path)
    assert [item.name for item in imported.items] == ["images/a.png"]
    assert codes(imported) == {
        "labels/b.json": "label_size_mismatch",
        "labels/c.json": "label_not_json",
        "images/d.png": "image_damaged",
        "images/e.png": "duplicate_image",
        "images/f.png": "missing_label",
        "labels/orphan.json": "label_without_image",
    }
    assert all(error.hint for error in imported.problems)
    assert imported.ignored == ("README.md",)


def test_the_caller_says_what_an_unlabelled_picture_is(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", frame())
    write_labelme(tmp_path / "a.json", "pit")
    write_png(tmp_path / "b.png", frame())
    assert codes(import_folder(tmp_path)) == {"b.png": "missing_label"}
    assert import_folder(tmp_path, unlabelled="good").items[1].labels == GoodFrame()
    excluded = import_folder(tmp_path, unlabelled="exclude")
    assert (len(excluded.items), excluded.excluded, excluded.problems) == (1, ("b.png",), ())


def test_files_that_can_not_be_told_apart_are_refused(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", frame())
    write_png(tmp_path / "a.bmp", frame())
    write_png(tmp_path / "b.png", frame())
    write_labelme(tmp_path / "b.json", "pit")
    write_labelme(tmp_path / "labels/b.json", "pit")
    assert codes(import_folder(tmp_path)) == {"a.bmp": "duplicate_key", "b.png": "duplicate_label"}


def test_masks_beside_labelme_files_need_named_classes(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", frame())
    write_labelme(tmp_path / "a.json", "pit")
    write_png(tmp_path / "b.png", frame())
    write_png(tmp_path / "b_mask.png", mask(1))
    with pytest.raises(LayoutError) as caught:
        import_folder(tmp_path)
    assert caught.value.code == "classes_needed"
    assert len(import_folder(tmp_path, classes=["pit"]).items) == 2


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    for folder, code in ((tmp_path, "no_images"), (tmp_path / "none", "folder_missing")):
        with pytest.raises(LayoutError) as caught:
            import_folder(folder)
        assert caught.value.code == code
