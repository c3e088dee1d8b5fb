"""What is exported is the same version when it is read in again."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
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
    open_archive,
)
from data.coco import read_coco
from data.export import COCO_NAME, ExportFormat, export_files, tar_stream
from data.storage import sha256_hex

CLASSES = ("Riß", "pit")
WIDTH, HEIGHT = 96, 64
PICTURE = b"a picture, as far as an export knows"


def item(name: str, labels: Any) -> Item:
    return Item(
        name=name,
        key=name,
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
    archive.write_bytes(b"".join(tar_stream(export_files(manifest, root, form))))
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


@pytest.mark.parametrize(
    ("form", "labels"),
    [
        ("coco", MaskLabels("blobs/mask", "0" * 64, (1,))),
        ("masks", BoxLabels((Box("pit", 1, 1, 2, 2),))),
        ("masks", PolygonLabels((Polygon("pit", ((1, 1), (2, 1), (2, 2))),))),
    ],
)
def test_what_a_format_cannot_hold_exactly_is_refused_with_the_one_that_can(
    root: Path, form: ExportFormat, labels: Any
) -> None:
    manifest = Manifest(
        "segmentation", CLASSES, (item("a.png", GoodFrame()), item("b.png", labels))
    )
    with pytest.raises(LabelError) as caught:
        export_files(manifest, root, form)
    assert (caught.value.code, caught.value.file) == ("export_unfit", "b.png")
    assert caught.value.hint


def test_a_stored_file_that_changed_or_is_gone_ends_the_export(root: Path) -> None:
    changed = dataclasses.replace(item("a.png", GoodFrame()), sha256="0" * 64)
    with pytest.raises(DataError, match="is not the one"):
        exported(Manifest("detection", CLASSES, (changed,)), root, "coco")
    gone = dataclasses.replace(item("a.png", GoodFrame()), file="blobs/none")
    with pytest.raises(DataError, match="is gone"):
        export_files(Manifest("detection", CLASSES, (gone,)), root, "coco")
