from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import Box, BoxLabels, LabelError, LayoutError, import_folder
from data.recognition import (
    LAYOUT_NAMES,
    check_classes,
    files_to_look_into,
    recognize_layout,
)

COCO = b'{"images": [], "annotations": []}'
YAML = b"names: [spur, short]"
YOLO = ("images/a.jpg", "images/b.jpg", "labels/a.txt", "labels/b.txt")


def recognize(*names: str, named: Any = None, **contents: bytes) -> Any:
    found = {name.replace("_", "."): raw for name, raw in contents.items()}
    return recognize_layout([*names, *found], found, named=named, file="set.zip")


@pytest.mark.parametrize(
    ("names", "layout", "evidence"),
    [
        (YOLO, "yolo", "yolo: 2 .txt in a label folder"),
        (("a.jpg", "a.xml"), "voc", "voc: 1 .xml of one frame each"),
        (("a.jpg", "a.json"), "labelme", "labelme: 1 .json of one frame each"),
        (("images/a.png", "masks/a.png"), "masks", "masks: 1 mask pictures"),
        (("a.jpg", "README.md"), None, "pictures only"),
    ],
)
def test_a_layout_is_recognized_with_its_evidence(
    names: tuple[str, ...], layout: str | None, evidence: str
) -> None:
    found = recognize(*names)
    assert (found.name, found.evidence, found.is_named) == (layout, evidence, False)


def test_the_content_tells_a_coco_file_from_that_of_one_frame() -> None:
    found = recognize("a.jpg", all_json=COCO)
    assert (found.name, found.many_frames) == ("coco", ("all.json",))
    assert recognize("a.jpg", a_json=b"{}").name == "labelme"
    names = [f"{index}.json" for index in range(40)] + ["x.jpg", "x.json"]
    assert len(files_to_look_into(names)) == 16
    assert "x.json" not in files_to_look_into(names)


def test_the_content_tells_a_cvat_file_from_that_of_one_frame() -> None:
    found = recognize("a.jpg", annotations_xml=b"<annotations></annotations>")
    assert (found.name, found.evidence) == ("cvat", "cvat: annotations.xml with <annotations>")
    assert recognize("a.jpg", a_xml=b"<annotation></annotation>").name == "voc"


def test_classes_come_from_data_yaml_which_is_no_part_of_the_data() -> None:
    found = recognize(*YOLO, data_yaml=YAML)
    assert found.evidence == "yolo: data.yaml and 2 .txt in a label folder"
    assert found.classes == ("spur", "short")
    assert found.notes == ("classes as data.yaml numbers them: spur, short",)
    assert found.leaves_out("data.yaml")
    check_classes(found, ["short", "pit", "spur"])
    check_classes(found, None)
    with pytest.raises(LabelError) as caught:
        check_classes(found, ["spur"])
    assert (caught.value.code, caught.value.file) == ("classes_differ", "data.yaml")


def test_two_class_lists_must_agree() -> None:
    contents = {"x/data.yaml": YAML, "y/data.yaml": b"names: [short, spur]"}
    with pytest.raises(LabelError) as caught:
        recognize_layout([*YOLO, *contents], contents)
    assert (caught.value.code, caught.value.file) == ("classes_differ", "y/data.yaml")


@pytest.mark.parametrize("extra", [("labels/a.xml",), ("masks/a.png",)])
def test_two_formats_for_one_frame_ask_for_the_layouts_name(extra: tuple[str, ...]) -> None:
    with pytest.raises(LayoutError) as caught:
        recognize(*YOLO, *extra)
    error = caught.value
    assert (error.code, error.file) == ("layout_ambiguous", "set.zip")
    assert "yolo: 2 .txt" in error.detail
    assert "Both label a." in error.detail
    assert "Name the layout" in str(error.hint)


def test_a_coco_file_beside_other_labels_is_ambiguous_until_one_is_named() -> None:
    with pytest.raises(LayoutError, match=r"coco: all\.json"):
        recognize(*YOLO, all_json=COCO)
    yolo = recognize(*YOLO, named="yolo", all_json=COCO)
    assert yolo.leaves_out("all.json")
    assert not yolo.leaves_out("labels/a.txt")
    assert yolo.notes == ("1 files are no part of the yolo layout and were left out: all.json",)
    coco = recognize(*YOLO, named="coco", all_json=COCO)
    assert [name for name in (*YOLO, "all.json") if coco.leaves_out(name)] == list(YOLO[2:])


def test_formats_that_label_frames_of_their_own_may_lie_side_by_side() -> None:
    found = recognize("a.jpg", "a.json", "b.png", "b_mask.png")
    assert found.name is None
    assert found.evidence == "labelme: 1 .json of one frame each and masks: 1 mask pictures"


def test_a_named_layout_that_is_not_there_is_refused_with_what_is() -> None:
    with pytest.raises(LayoutError) as caught:
        recognize(*YOLO, named="voc")
    assert caught.value.code == "layout_mismatch"
    assert "found: yolo: 2 .txt in a label folder" in caught.value.detail


NAMES = st.lists(
    st.from_regex(
        r"(images/|labels/|masks/|test/)?[ab](_mask)?\.(png|jpg|txt|json|xml|yaml)", fullmatch=True
    ),
    max_size=8,
    unique=True,
)


@given(NAMES, st.sampled_from([None, *LAYOUT_NAMES]))
def test_any_names_give_a_layout_or_its_error_and_no_label_is_lost_unsaid(
    names: list[str], named: Any
) -> None:
    try:
        found = recognize_layout(names, {}, named=named, file="set.zip")
    except LayoutError as error:
        refusals = {"layout_ambiguous", "layout_mismatch"}
        assert (error.code in refusals, bool(error.hint)) == (True, True)  # noqa: PT017 - some are refused, some are not.
        return
    left_out = [name for name in names if found.leaves_out(name)]
    assert bool(left_out) == any(note.startswith(f"{len(left_out)} files") for note in found.notes)
    assert not left_out or found.is_named


def write_frame(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (100, 200), dtype=np.uint8)
    path.write_bytes(imagecodecs.png_encode(pixels))


def test_a_folder_takes_its_classes_from_data_yaml_whatever_the_declared_order(
    tmp_path: Path,
) -> None:
    write_frame(tmp_path / "images/a.png", 0)
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/a.txt").write_text("1 0.5 0.5 0.25 0.5\n")
    (tmp_path / "data.yaml").write_bytes(YAML)
    expected = BoxLabels((Box("short", 75, 25, 50, 50),))
    for classes in (None, ["short", "spur"]):
        imported = import_folder(tmp_path, classes=classes)
        assert imported.problems == ()
        assert imported.items[0].labels == expected
        assert imported.classes == tuple(classes or ("spur", "short"))
        assert imported.layout.evidence == "yolo: data.yaml and 1 .txt in a label folder"
        assert imported.ignored == ("data.yaml",)
    with pytest.raises(LabelError):
        import_folder(tmp_path, classes=["spur", "pit"])
