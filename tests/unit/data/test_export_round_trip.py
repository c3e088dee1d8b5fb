"""Manifest, export, import: whatever the names, sizes and shapes, it is the same manifest."""

import dataclasses
import tempfile
from pathlib import Path, PurePosixPath

import imagecodecs
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data import (
    Box,
    BoxLabels,
    GoodFrame,
    Item,
    Labels,
    LayoutError,
    Manifest,
    MaskLabels,
    Polygon,
    PolygonLabels,
    clean_name,
    import_folder,
    open_archive,
    sample_key,
)
from data.coco import read_coco
from data.export import COCO_NAME, ExportFormat, export_files, tar_stream
from data.labels import labels_from_mask
from data.storage import sha256_hex

CLASSES = ("Riß & <Bruch>", "pit", "oil stain", "0")

FOLDERS = st.sampled_from(
    [
        "images",
        "data",
        "JPEGImages",
        "lot 1",
        "Teil.ä",
        "images.old",
        "部品",
        "a'b\"c",
        "#",
        "x_mask",
    ]
)
STEMS = st.sampled_from(["classes", "annotations", "a.b", "data", "_", "train", "x.tar"]) | st.text(
    st.characters(codec="utf-8", exclude_characters="/\\"), min_size=1, max_size=12
)
SUFFIXES = st.sampled_from([".png", ".PNG", ".jpg", ".tif"])


@st.composite
def names(draw: st.DrawFn) -> str:
    folders = draw(st.lists(FOLDERS, max_size=3))
    return "/".join([*folders, draw(STEMS) + draw(SUFFIXES)])


def is_importable(name: str) -> bool:
    try:
        usual = clean_name(name) == name and sample_key(name).kind == "image"
    except LayoutError:
        return False
    # Hidden files are no part of a folder, and a YOLO label can't be called as a list of classes.
    return (
        usual
        and not any(part.startswith(".") for part in name.split("/"))
        and PurePosixPath(name).stem.lower() != "classes"
    )


def places(side: int) -> st.SearchStrategy[float]:
    """Give floats of all kinds, those at the edges and just beside whole numbers above all."""
    return (
        st.floats(0, side)
        | st.integers(0, side).map(float)
        | st.integers(1, side).map(lambda whole: float(np.nextafter(whole, 0)))
        | st.sampled_from([0.0, 5e-324, 0.1, 1 / 3, float(side)])
    )


@st.composite
def boxes(draw: st.DrawFn, width: int, height: int) -> Box:
    extents = []
    for side in (width, height):
        begin, end = sorted(draw(st.tuples(places(side), places(side))))
        length = draw(st.just(end - begin) | st.floats(0, side - begin))
        if not begin < begin + length <= side:
            begin, length = 0.0, draw(st.sampled_from([1.0, 0.1, float(side)]))
        extents.append((begin, length))
    (x, box_width), (y, box_height) = extents
    return Box(draw(st.sampled_from(CLASSES)), x, y, box_width, box_height)


def polygons(width: int, height: int) -> st.SearchStrategy[Polygon]:
    points = st.lists(st.tuples(places(width), places(height)), min_size=3, max_size=6)
    return st.builds(Polygon, st.sampled_from(CLASSES), points.map(tuple))


@st.composite
def labels(draw: st.DrawFn, form: ExportFormat, width: int, height: int) -> Labels:
    outlines = st.lists(polygons(width, height), min_size=1, max_size=3)
    rectangles = st.lists(boxes(width, height), min_size=1, max_size=3)
    drawn = {
        "coco": outlines | rectangles,
        "labelme": outlines,
        "voc": rectangles,
        "yolo": outlines | rectangles,
    }[form]
    found = draw(st.just([]) | drawn)
    if not found:
        return GoodFrame()
    if isinstance(found[0], Box):
        return BoxLabels(tuple(shape for shape in found if isinstance(shape, Box)))
    return PolygonLabels(tuple(shape for shape in found if isinstance(shape, Polygon)))


@st.composite
def frames(draw: st.DrawFn) -> list[tuple[str, int, int, int]]:
    """Name, width, height and channels of a few frames, whose names do not collide."""
    found: dict[str, tuple[str, int, int, int]] = {}
    for name in draw(st.lists(names().filter(is_importable), min_size=1, max_size=4)):
        size = draw(st.tuples(st.integers(32, 47), st.integers(32, 47)))
        found.setdefault(sample_key(name).key, (name, *size, draw(st.sampled_from([1, 3]))))
    return list(found.values())


def store(root: Path, content: bytes) -> str:
    (root / "blobs").mkdir(exist_ok=True)
    (root / "blobs" / sha256_hex(content)).write_bytes(content)
    return f"blobs/{sha256_hex(content)}"


def make_item(root: Path, index: int, frame: tuple[str, int, int, int]) -> Item:
    name, width, height, channels = frame
    # The content decides what a file is, so that a PNG may be called .jpg.
    shape = (height, width) if channels == 1 else (height, width, channels)
    raw = bytes(imagecodecs.png_encode(np.full(shape, 40 + index, np.uint8)))
    return Item(
        name=name,
        key=sample_key(name).key,
        file=store(root, raw),
        sha256=sha256_hex(raw),
        width=width,
        height=height,
        channels=1 if channels == 1 else 3,
        bit_depth=8,
        group=None,
        split=None,
        labels=GoodFrame(),
    )


def import_again(manifest: Manifest, root: Path, form: ExportFormat) -> Manifest:
    """Export a version, unpack it, import the folder and keep its files under their digests."""
    archive, folder = root / "export.tar", root / "unpacked"
    archive.write_bytes(b"".join(tar_stream(export_files(manifest, root, form))))
    for member in open_archive(archive):
        path = folder / member.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(member.open().read())
    # A folder takes no COCO file, an upload does; which frame is whose is decided by the name.
    coco = folder / COCO_NAME
    known: dict[str, Labels] = {}
    if form == "coco":
        read = read_coco(coco.read_bytes(), name=COCO_NAME, classes=manifest.classes)
        known = {frame.file_name: frame.labels for frame in read}
        coco.unlink()
    imported = import_folder(
        folder,
        classes=manifest.classes,
        unlabelled="good" if form == "coco" else "reject",
    )
    assert imported.problems == ()
    items = [
        dataclasses.replace(_by_digest(item), labels=known.get(item.name, _by_digest(item).labels))
        for item in imported.items
    ]
    return dataclasses.replace(manifest, items=tuple(items))


def _by_digest(item: Item) -> Item:
    labels = item.labels
    if isinstance(labels, MaskLabels):
        labels = dataclasses.replace(labels, file=f"blobs/{labels.sha256}")
    return dataclasses.replace(item, file=f"blobs/{item.sha256}", labels=labels)


# Files are written and pictures decoded.
ROUND_TRIP = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.parametrize("form", ["coco", "labelme", "voc", "yolo"])
@given(data=st.data(), found=frames())
@ROUND_TRIP
def test_drawn_shapes_come_back_to_the_last_bit(
    form: ExportFormat, data: st.DataObject, found: list[tuple[str, int, int, int]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        items = [
            dataclasses.replace(
                make_item(root, index, frame), labels=data.draw(labels(form, frame[1], frame[2]))
            )
            for index, frame in enumerate(found)
        ]
        manifest = Manifest("detection", CLASSES, tuple(items))
        assert import_again(manifest, root, form).digest == manifest.digest


@given(data=st.data(), found=frames())
@ROUND_TRIP
def test_masks_come_back_byte_for_byte(
    data: st.DataObject, found: list[tuple[str, int, int, int]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        items = []
        for index, frame in enumerate(found):
            _, width, height, _ = frame
            pixels = np.zeros((height, width), np.uint8)
            for value in data.draw(st.lists(st.integers(1, len(CLASSES)), max_size=3)):
                row, column = data.draw(st.tuples(st.integers(0, 31), st.integers(0, 31)))
                pixels[row : row + 3, column : column + 5] = value
            raw = bytes(imagecodecs.png_encode(pixels))
            label = labels_from_mask(pixels, file=store(root, raw), sha256=sha256_hex(raw))
            items.append(dataclasses.replace(make_item(root, index, frame), labels=label))
        manifest = Manifest("segmentation", CLASSES, tuple(items))
        assert import_again(manifest, root, "masks").digest == manifest.digest


@pytest.mark.datasets
@pytest.mark.parametrize(
    ("folder", "forms"),
    [
        ("hripcb", ("voc", "yolo", "coco")),
        ("bsdata", ("labelme", "yolo", "coco")),
    ],
)
def test_what_people_drew_on_real_frames_comes_back(
    datasets_dir: Path, tmp_path: Path, folder: str, forms: tuple[ExportFormat, ...]
) -> None:
    source = datasets_dir / folder
    imported = import_folder(source, unlabelled="exclude")
    # A fifth of the frames, so that it is quick.
    items = []
    for item in imported.items[::10] + imported.items[1::10]:
        raw = (source / item.file).read_bytes()
        items.append(dataclasses.replace(item, file=store(tmp_path, raw)))
    manifest = Manifest("detection", imported.classes, tuple(items))
    for form in forms:
        root = tmp_path / form
        root.mkdir()
        (root / "blobs").symlink_to(tmp_path / "blobs")
        assert import_again(manifest, root, form).digest == manifest.digest
