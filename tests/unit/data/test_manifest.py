import dataclasses
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import (
    BAYER_PATTERNS,
    SPLIT_NAMES,
    Box,
    BoxLabels,
    GoodFrame,
    Item,
    Manifest,
    ManifestError,
    MaskLabels,
    Polygon,
    PolygonLabels,
)
from data.storage import sha256_hex

CLASSES = ("scratch", "pit")
HEX = st.text("0123456789abcdef", min_size=64, max_size=64)
# Any text a file system may hold: no surrogates, which UTF-8 has no bytes for.
NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)
COORDINATES = st.floats(0, 5000) | st.integers(0, 5000)
POLYGONS = st.builds(
    Polygon,
    st.sampled_from(CLASSES),
    st.lists(st.tuples(COORDINATES, COORDINATES), min_size=3, max_size=6).map(tuple),
)
BOXES = st.builds(
    Box, st.sampled_from(CLASSES), COORDINATES, COORDINATES, st.floats(1, 99), st.integers(1, 99)
)
LABELS = (
    st.just(GoodFrame())
    | st.lists(BOXES, min_size=1, max_size=3).map(lambda found: BoxLabels(tuple(found)))
    | st.lists(POLYGONS, min_size=1, max_size=3).map(lambda found: PolygonLabels(tuple(found)))
    | st.builds(
        MaskLabels,
        st.just("masks/m.png"),
        HEX,
        st.just((1, 2)),
        st.lists(st.tuples(st.integers(1, 2), st.integers(1, 999)), max_size=3).map(tuple),
    )
)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    names = draw(st.lists(NAMES, max_size=6, unique=True))
    bayer = draw(st.none() | st.sampled_from(BAYER_PATTERNS))
    # A mosaic's sides are even, and what it becomes has three channels.
    sides = st.integers(1, 9999) if bayer is None else st.integers(1, 4999).map(lambda n: 2 * n)
    items = tuple(
        Item(
            name=name,
            key=name,
            file=f"blobs/{index}",
            sha256=draw(HEX),
            width=draw(sides),
            height=draw(sides),
            channels=draw(st.sampled_from([1, 3])) if bayer is None else 3,
            bit_depth=draw(st.sampled_from([8, 16])),
            group=draw(st.none() | NAMES),
            split=draw(st.none() | st.sampled_from(SPLIT_NAMES)),
            labels=draw(LABELS),
        )
        for index, name in enumerate(names)
    )
    return Manifest("segmentation", CLASSES, items, draw(st.integers(0, 2**40)), bayer)


@given(manifest=manifests())
def test_a_manifest_comes_back_equal_with_the_same_digest(
    manifest: Manifest, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("manifest") / "manifest.jsonl"
    manifest.write(path)
    again = Manifest.read(path)
    assert again == manifest
    assert again.digest == manifest.digest == sha256_hex(path.read_bytes())


@given(manifest=manifests(), seed=st.integers(0, 100))
def test_the_digest_does_not_depend_on_the_items_order(manifest: Manifest, seed: int) -> None:
    items = list(manifest.items)
    random.Random(seed).shuffle(items)  # noqa: S311 - no secret.
    assert dataclasses.replace(manifest, items=tuple(items)).digest == manifest.digest


@given(manifest=manifests())
def test_a_declared_pattern_names_another_version_and_none_leaves_no_trace(
    manifest: Manifest, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("manifest") / "manifest.jsonl"
    manifest.write(path)
    header = json.loads(path.read_bytes().splitlines()[0])
    assert header.get("bayer", "absent") == (manifest.bayer or "absent")
    colour = tuple(
        dataclasses.replace(item, width=2, height=2, channels=3) for item in manifest.items
    )
    declared = [None, *BAYER_PATTERNS]
    versions = {dataclasses.replace(manifest, items=colour, bayer=b).digest for b in declared}
    assert len(versions) == len(declared)


def test_a_manifest_from_before_bayer_patterns_keeps_its_digest(
    make_item: Callable[..., Item],
) -> None:
    # Computed by the release that knew no pattern.
    manifest = Manifest("segmentation", CLASSES, (make_item("a"), make_item("b")), 3)
    assert manifest.digest == "00d403ece30f64eb7e09e4d4ca792787dbd9102ee7d089092a20a96a9aacfb30"


def test_whole_numbers_and_floats_of_equal_value_have_equal_bytes(
    make_item: Callable[..., Item],
) -> None:
    digests = set()
    for one in (1, 1.0):
        labels = PolygonLabels((Polygon("pit", ((one, one), (5, one), (one, 5))),))
        item = dataclasses.replace(make_item("a"), labels=labels)
        digests.add(Manifest("segmentation", CLASSES, (item,)).digest)
    assert len(digests) == 1


@pytest.fixture
def lines(make_item: Callable[..., Item], tmp_path: Path) -> list[dict[str, Any]]:
    items = (make_item("a", defective=True), make_item("b"))
    Manifest("segmentation", CLASSES, items, 3).write(tmp_path / "valid.jsonl")
    return [json.loads(line) for line in (tmp_path / "valid.jsonl").read_text().splitlines()]


def read(tmp_path: Path, lines: list[Any], end: str = "\n") -> Manifest:
    path = tmp_path / "manifest.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts) + end)
    return Manifest.read(path)


@pytest.mark.parametrize(
    ("change", "code", "where"),
    [
        (lambda ls: ls[1].update(width=0), "manifest_line", "line 2 /width"),
        (lambda ls: ls[1].update(width="64"), "manifest_line", "line 2 /width"),
        (lambda ls: ls[2].update(extra=1), "manifest_line", "line 3 /extra"),
        (lambda ls: ls[2].update(sha256="x"), "manifest_line", "line 3 /sha256"),
        (lambda ls: ls[2].update(split="validation"), "manifest_line", "line 3 /split"),
        (lambda ls: ls[2].pop("key"), "manifest_line", "line 3 /key"),
        (lambda ls: ls[2]["labels"].update(kind="boxes"), "manifest_line", "line 3 /labels"),
        (lambda ls: ls[0].update(bayer="RGB"), "manifest_line", "line 1 /bayer"),
        (lambda ls: ls[0].update(bayer=None), "manifest_line", "line 1 /bayer"),
        (lambda ls: ls[0].update(format_version=2), "manifest_line", "line 1 /format_version"),
        (lambda ls: ls.pop(), "manifest_cut_off", "line 3"),
        (lambda ls: ls.append(ls[2]), "manifest_cut_off", "line 5"),
        (lambda ls: ls.__setitem__(2, '{"name":"x","name":"y"}'), "manifest_line", "line 3"),
        (lambda ls: ls.__setitem__(1, "nonsense"), "manifest_line", "line 2"),
        (lambda ls: ls[2].update(name="a"), "manifest_inconsistent", None),
        (lambda ls: ls[2].update(file="../../etc/passwd"), "manifest_inconsistent", "b"),
        (lambda ls: ls[0].update(classes=["scratch"]), "manifest_inconsistent", "a"),
        (lambda ls: ls[0].update(bayer="RGGB"), "manifest_inconsistent", "a"),
        (lambda ls: ls[0].update(classes=["pit", "pit"]), "manifest_inconsistent", None),
    ],
)
def test_a_damaged_manifest_names_the_line_and_the_field(
    lines: list[dict[str, Any]], tmp_path: Path, change: Any, code: str, where: str | None
) -> None:
    change(lines)
    with pytest.raises(ManifestError) as caught:
        read(tmp_path, lines)
    assert caught.value.code == code
    assert caught.value.file == str(tmp_path / "manifest.jsonl")
    assert (caught.value.where or "").startswith(where or "")


def test_a_last_line_without_its_end_is_cut_off(
    lines: list[dict[str, Any]], tmp_path: Path
) -> None:
    with pytest.raises(ManifestError) as caught:
        read(tmp_path, lines, end="")
    assert caught.value.code == "manifest_cut_off"


def test_a_missing_manifest_is_our_error(tmp_path: Path) -> None:
    with pytest.raises(ManifestError) as caught:
        Manifest.read(tmp_path / "none.jsonl")
    assert caught.value.code == "manifest_unreadable"


def test_a_manifest_that_can_not_be_written_leaves_nothing_behind(
    make_item: Callable[..., Item], tmp_path: Path
) -> None:
    (tmp_path / "manifest.jsonl").mkdir()
    with pytest.raises(OSError, match="manifest"):
        Manifest("segmentation", CLASSES, (make_item("a"),)).write(tmp_path / "manifest.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.jsonl"]


def test_statistics_count_frames_groups_and_defects(make_item: Callable[..., Item]) -> None:
    items = [
        dataclasses.replace(make_item(f"{i}", defective=i < 2), split="train", group=f"{i // 2}")
        for i in range(4)
    ]
    manifest = Manifest("segmentation", CLASSES, tuple(items))
    found = manifest.statistics().as_dict()
    assert found["splits"]["train"] == {"frames": 4, "good": 2, "defective": 2, "groups": 2}
    assert found["classes"]["pit"]["frames"] == {"train": 2}
    assert found["classes"]["pit"]["area_px_quantiles"]["0.5"] == 8.0
    assert found["classes"]["scratch"] == {"frames": {}, "defects": 0, "area_px_quantiles": {}}
    assert found["sizes"] == {"64x48": 4}
    assert sum(found["labels"].values()) == 4
    assert found["labels"]["good"] == 2
    assert json.loads(json.dumps(found)) == found


def test_a_subset_holds_one_split_and_all_classes(make_item: Callable[..., Item]) -> None:
    items = (
        dataclasses.replace(make_item("a"), split="train"),
        dataclasses.replace(make_item("b"), split="test"),
    )
    subset = Manifest("segmentation", CLASSES, items).subset("test")
    assert [item.name for item in subset.items] == ["b"]
    assert subset.classes == CLASSES
