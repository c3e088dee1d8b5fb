"""A folder is looked through before anything of it is sent."""

from pathlib import Path

import pytest

from data import LabelError
from service.client.folder_upload import list_folder


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_what_only_divides_a_yolo_set_is_not_sent_and_its_classes_are_read(tmp_path: Path) -> None:
    folder = write(
        tmp_path,
        {
            "images/a.png": "picture",
            "labels/a.txt": "0 .5 .5 .1 .1",
            "labels/train.txt": "",
            "data.yaml": "names: [scratch, pit]",
            "train.txt": "./images/a.png",
        },
    )
    found = list_folder(folder)
    assert [file.name for file in found.files] == [
        "images/a.png",
        "labels/a.txt",
        "labels/train.txt",
    ]
    assert [file.name for file in found.yolo_lists] == ["data.yaml", "train.txt"]
    assert found.yolo_classes() == ("scratch", "pit")


def test_a_folder_without_a_class_file_numbers_nothing(tmp_path: Path) -> None:
    assert list_folder(write(tmp_path, {"a.png": "picture"})).yolo_classes() is None


def test_two_class_files_that_differ_are_refused_by_name(tmp_path: Path) -> None:
    files = {"data.yaml": "names: [a, b]", "more/data.yaml": "names: [b, a]", "x.png": ""}
    folder = write(tmp_path, files)
    with pytest.raises(LabelError) as caught:
        list_folder(folder).yolo_classes()
    assert (caught.value.code, caught.value.file) == ("classes_differ", "more/data.yaml")
