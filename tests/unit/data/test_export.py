"""What is exported is the same version when it is read in again."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from data import (
    Box,
    BoxLabels,
    DataError,
    GoodFrame,
    Item,
    LabelError,
    Manifest,
    MaskLabels,
    Polygon,
    PolygonLabels,
    SplitName,
    open_archive,
    sample_key,
)
from data.coco import read_coco
from data.export import COCO_NAME, ExportFormat, export_files, tar_size, tar_stream
from data.storage import sha256_hex

CLASSES = ("Riß", "pit")
WIDTH, HEIGHT = 96, 64
PICTURE = b"a picture, as far as an export knows"


def item(name: str, labels: Any) -> Item:
    return Item(
        name=name,
        key=sample_key(name).key,
        file="blobs/picture",
        sha256=sha256_hex(PICTURE),
        width=WIDTH,
        height=HEIGHT,
        channels=1,
        bit_depth=8,
        group=None,
        split=None,
        labels=labels,
    )


def exported(manifest: Manifest, root: Path, form: ExportFormat) -> dict[str, bytes]:
    archive = root / "export.tar"
    files = export_files(manifest, root, form)
    archive.write_bytes(b"".join(tar_stream(files)))
    assert archive.stat().st_size == tar_size(files)
    return {member.name: member.open().read() for member in open_archive(archive)}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("storage")
    (root / "blobs").mkdir()
    (root / "blobs/picture").write_bytes(PICTURE)
    (root / "blobs/mask").write_bytes(b"a mask")
    return root


def points() -> st.SearchStrategy[tuple[float, float]]:
    return st.tuples(st.floats(0, WIDTH), st.floats(0, HEIGHT))


@st.composite
def boxes(draw: st.DrawFn) -> Box:
    x, y = draw(st.floats(0, WIDTH - 1)), draw(st.floats(0, HEIGHT - 1))
    width, height = draw(st.floats(0.01, WIDTH - x)), draw(st.floats(0.01, HEIGHT - y))
    return Box(draw(st.sampled_from(CLASSES)), x, y, width, height)


POLYGONS = st.builds(
    Polygon, st.sampled_from(CLASSES), st.lists(points(), min_size=3, max_size=6).map(tuple)
)
LABELS = (
    st.just(GoodFrame())
    | st.lists(POLYGONS, min_size=1, max_size=4).map(lambda found: PolygonLabels(tuple(found)))
    | st.lists(boxes(), min_size=1, max_size=4).map(lambda found: BoxLabels(tuple(found)))
)


@given(st.lists(LABELS, min_size=1, max_size=5))
@settings(deadline=None)
def test_a_coco_export_gives_every_label_back_to_the_last_bit(
    root: Path, labels: list[GoodFrame | PolygonLabels | BoxLabels]
) -> None:
    items = tuple(item(f"lot ä/{index}.png", label) for index, label in enumerate(labels))
    manifest = Manifest("detection", CLASSES, items)
    files = exported(manifest, root, "coco")
    assert [files[entry.name] for entry in manifest.items] == [PICTURE] * len(items)
    frames = read_coco(files[COCO_NAME], name=COCO_NAME, classes=CLASSES)
    assert {frame.file_name: frame.labels for frame in frames} == {
        entry.name: entry.labels for entry in manifest.items
    }


def test_an_export_of_masks_keeps_the_files_and_blanks_the_good_frames(root: Path) -> None:
    mask = MaskLabels("blobs/mask", sha256_hex(b"a mask"), (1,))
    manifest = Manifest(
        "segmentation", CLASSES, (item("a.b.png", mask), item("c.tif", GoodFrame()))
    )
    files = exported(manifest, root, "masks")
    assert list(files) == ["a.b.png", "c.tif", "a.b_mask.png", "c_mask.png"]
    assert files["a.b_mask.png"] == b"a mask"
    assert files["c_mask.png"].startswith(b"\x89PNG")
    assert exported(manifest, root, "masks") == files


MASK = MaskLabels("blobs/mask", "0" * 64, (1,))
BOX = BoxLabels((Box("pit", 1, 1, 2, 2),))
OUTLINE = PolygonLabels((Polygon("pit", ((1, 1), (2, 1), (2, 2))),))


@pytest.mark.parametrize(
    ("form", "labels", "remedy"),
    [
        ("coco", (MASK,), "masks"),
        ("labelme", (BOX,), "coco or voc or yolo"),
        ("labelme", (OUTLINE, BOX), "coco or yolo"),
        ("masks", (BOX,), "coco or voc or yolo"),
        ("masks", (OUTLINE,), "coco or labelme or yolo"),
        ("voc", (OUTLINE,), "coco or labelme or yolo"),
        ("yolo", (MASK,), "masks"),
        ("yolo", (OUTLINE, MASK), "No format holds masks beside"),
    ],
)
def test_what_a_format_cannot_hold_exactly_is_refused_with_the_one_that_can(
    root: Path, form: ExportFormat, labels: tuple[Any, ...], remedy: str
) -> None:
    items = [item(f"b{index}.png", label) for index, label in enumerate(labels)]
    manifest = Manifest("segmentation", CLASSES, (item("a.png", GoodFrame()), *items))
    with pytest.raises(LabelError) as caught:
        export_files(manifest, root, form)
    assert caught.value.code == "export_unfit"
    assert (caught.value.file or "").startswith("b")
    assert remedy in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("form", "name", "labels"),
    [
        # A class whose name XML can't carry, shapes that reach out of the frame.
        ("voc", "a.png", BoxLabels((Box("p\x01it", 1, 1, 2, 2),))),
        ("voc", "a.png", BoxLabels((Box("pit ", 1, 1, 2, 2),))),
        ("voc", "a.png", BoxLabels((Box("pit", 90, 1, 7, 2),))),
        ("yolo", "a.png", BoxLabels((Box("pit", -0.25, 1, 7, 2),))),
        ("yolo", "a.png", PolygonLabels((Polygon("pit", ((1, 1), (2, 2))),))),
        ("labelme", "a.png", PolygonLabels((Polygon("pit", ((1, 1), (2, 2), (97, 2))),))),
        # Names that the label files would not find back.
        ("yolo", "classes.png", OUTLINE),
        ("labelme", "a" * 251 + ".png", OUTLINE),
        ("masks", "a" * 250 + ".png", GoodFrame()),
    ],
)
def test_a_frame_that_would_come_back_as_another_is_named(
    root: Path, form: ExportFormat, name: str, labels: Any
) -> None:
    classes = (*CLASSES, "p\x01it", "pit ")
    manifest = Manifest("segmentation", classes, (item("z.png", GoodFrame()), item(name, labels)))
    with pytest.raises(LabelError) as caught:
        export_files(manifest, root, form)
    assert (caught.value.code, caught.value.file) == ("export_unfit", name)
    assert caught.value.hint
    assert len(caught.value.detail) < 300


def test_a_stored_file_that_changed_or_is_gone_ends_the_export(root: Path) -> None:
    changed = dataclasses.replace(item("a.png", GoodFrame()), sha256="0" * 64)
    with pytest.raises(DataError, match="is not the one"):
        exported(Manifest("detection", CLASSES, (changed,)), root, "coco")
    gone = dataclasses.replace(item("a.png", GoodFrame()), file="blobs/none")
    with pytest.raises(DataError, match="is gone"):
        export_files(Manifest("detection", CLASSES, (gone,)), root, "coco")


def test_labels_lie_where_their_tools_look_for_them(root: Path) -> None:
    names = ("lot/images/a.png", "images/b.c.png", "data/d.png", "images/data/e.png")
    manifest = Manifest("detection", CLASSES, tuple(item(name, GoodFrame()) for name in names))
    yolo = exported(manifest, root, "yolo")
    assert {name for name in yolo if name.endswith(".txt")} == {
        "lot/labels/a.txt",
        "labels/b.c.txt",
        "labels/d.txt",
        "labels/images/e.txt",
    }
    assert set(exported(manifest, root, "voc")) - set(names) == {
        "lot/images/a.xml",
        "images/b.c.xml",
        "data/d.xml",
        "images/data/e.xml",
    }


def test_yolo_tools_are_told_the_classes_and_the_splits(root: Path) -> None:
    classes = ("Riß", "no", "a: b", "😀 #1")
    splits: dict[str, SplitName] = {
        "images/ä b.png": "train",
        "images/c.png": "calibration",
        "images/d.png": "train",
    }
    items = [
        dataclasses.replace(item(name, GoodFrame()), split=split) for name, split in splits.items()
    ]
    files = exported(Manifest("detection", classes, tuple(items)), root, "yolo")
    assert yaml.safe_load(files["data.yaml"]) == {
        "train": "train.txt",
        "val": "val.txt",
        "names": dict(enumerate(classes)),
    }
    assert files["train.txt"].decode() == "./images/d.png\n./images/ä b.png\n"
    assert files["val.txt"].decode() == "./images/c.png\n"
    assert "test.txt" not in files


def test_round_numbers_are_written_as_tools_write_them(root: Path) -> None:
    manifest = Manifest(
        "detection", CLASSES, (item("a.png", BoxLabels((Box("pit", 12, 8, 24, 16.5),))),)
    )
    voc = exported(manifest, root, "voc")["a.xml"].decode()
    for corner in ("<xmin>13<", "<ymin>9<", "<xmax>36<", "<ymax>24.5<"):
        assert corner in voc
    assert exported(manifest, root, "yolo")["labels/a.txt"] == b"1 0.25 0.25390625 0.25 0.2578125\n"
