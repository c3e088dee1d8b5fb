import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import LayoutError, clean_name, sample_key


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("data/KGT1.jpg", "label/KGT1.json"),
        ("data/train/images/X.jpg", "data/train/masks/X_mask.png"),
        ("images/a.png", "masks/a.png"),
        ("images/a.png", "masks/a_mask.png"),
        ("images/lot1/a.bmp", "masks/lot1/a.png"),
        ("Images/a.TIF", "Annotations/a.json"),
        ("a.jpg", "a.json"),
        ("a.jpg", "a_mask.png"),
        ("images/a.jpg", "images/a.json"),
        ("images/a.jpg", "images/a_MASK.png"),
        ("img/b/a.jpg", "ground_truth/b/a.png"),
        ("JPEGImages/a.jpg", "Annotations/a.xml"),
        ("PCB_DATASET/images/Short/a.jpg", "PCB_DATASET/Annotations/Short/a.xml"),
        ("a.jpg", "a.xml"),
        ("images/train/a.jpg", "labels/train/a.txt"),
        ("train/images/a.jpg", "train/labels/a.txt"),
    ],
)
def test_a_picture_and_its_label_share_a_key(image: str, label: str) -> None:
    assert sample_key(image).kind == "image"
    kinds = {"json": "labelme", "xml": "voc", "txt": "yolo"}
    assert sample_key(label).kind == kinds.get(label.rpartition(".")[2], "mask")
    assert sample_key(image).key == sample_key(label).key


def test_frames_of_different_folders_keep_different_keys() -> None:
    assert sample_key("line1/images/a.png") != sample_key("line2/images/a.png")
    assert sample_key("train/images/a.png").key == "train/a"


@pytest.mark.parametrize(
    "path", ["README.md", "a.gif", "images/a", "a.csv", ".json", "README.txt", "labels/classes.txt"]
)
def test_other_files_are_refused_by_name(path: str) -> None:
    with pytest.raises(LayoutError) as caught:
        sample_key(path)
    assert (caught.value.code, caught.value.file) == ("unsupported_file", path)


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "../a.png",
        "a/../../b.png",
        "C:/a.png",
        "c:a.png",
        "a\\b.png",
        "a\0.png",
        "a\n.png",
        "",
        ".",
        "//",
        "x" * 256,
        "ü" * 128,
        "\ud800.png",
    ],
)
def test_a_name_that_could_leave_its_folder_is_refused(path: str) -> None:
    with pytest.raises(LayoutError) as caught:
        clean_name(path)
    assert caught.value.code == "unsafe_name"
    assert str(caught.value).isprintable(), "an error must not carry the control character on"


@given(path=st.text(max_size=40))
def test_a_clean_name_is_safe_and_stays_as_it_is(path: str) -> None:
    try:
        name = clean_name(path)
    except LayoutError:
        return
    assert clean_name(name) == name
    assert not name.startswith("/")
    assert not {"", ".", ".."} & set(name.split("/"))


def test_tar_style_names_are_only_tidied() -> None:
    assert clean_name("./images//teil ü.png") == "images/teil ü.png"
