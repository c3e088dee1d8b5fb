"""Whatever bytes a parser meets, a DataError is all that may come out.

A quick round runs with the suite, the same examples each time.  ``HYPOTHESIS_PROFILE=long``
searches for minutes, with other examples each time.
"""

import contextlib
import gzip
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from backports import zstd
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data import DataError, Manifest, PixelLimits, decode_image, open_archive
from data.coco import read_coco
from data.cvat import read_cvat
from data.deeppcb import read_deeppcb
from data.label_files import LabelKind, read_label_file
from data.yolo_classes import read_yolo_classes
from tests.corpus.archives import GOOD, tarred, zipped
from tests.corpus.entries import (
    CLASSES,
    COLOUR,
    HEIGHT,
    MONO,
    WIDTH,
    coco,
    coco_annotation,
    index_mask,
    labelme,
    labelme_shape,
    pillow,
    png,
    tiff,
    voc,
)
from tests.corpus.many_frames import cvat, run_lengths

IS_LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"
FUZZ = settings(
    max_examples=2000 if IS_LONG else 60,
    derandomize=not IS_LONG,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
LIMITS = PixelLimits(1_000_000, 4096, 1)
# A mutated header may promise an archive's largest member; no more than this of it is read.
MOST_BYTES_READ = 200_000

_TAR = tarred(("a.png", GOOD), ("b.json", labelme()), ("link", b""), kind=b"2")
_MANIFEST = (
    b'{"classes":["pit"],"format":"hairline-manifest","format_version":1,"items":1,'
    b'"split_seed":0,"task":"segmentation"}\n{"bit_depth":8,"channels":1,"file":"blobs/a",'
    b'"group":null,"height":64,"key":"a","labels":{"kind":"good"},"name":"a.png","sha256":"'
    + b"0" * 64
    + b'","split":"train","width":96}\n'
)


def _parse_picture(raw: bytes) -> None:
    decode_image(raw, name="a.png", limits=LIMITS)


def _label_parser(kind: LabelKind) -> Callable[[bytes], None]:
    def parse(raw: bytes) -> None:
        read_label_file(
            raw,
            name="a",
            kind=kind,
            classes=CLASSES,
            file="blobs/x",
            sha256="0" * 64,
            frame_size=(WIDTH, HEIGHT),
            limits=LIMITS,
        )

    return parse


def _parse_coco(raw: bytes) -> None:
    read_coco(raw, name="coco.json", classes=CLASSES, keep_mask=lambda _: "blobs/mask")


def _parse_cvat(raw: bytes) -> None:
    read_cvat(raw, name="annotations.xml", classes=None)


def _parse_deeppcb(raw: bytes) -> None:
    read_deeppcb(raw, name="a.txt", classes=None, width=WIDTH, height=HEIGHT)


def _parse_yolo_classes(raw: bytes) -> None:
    read_yolo_classes(raw, name="data.yaml")


def _with_file(parse: Callable[[Path], None]) -> Callable[[bytes], None]:
    def parse_bytes(raw: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "a"
            path.write_bytes(raw)
            parse(path)

    return parse_bytes


def _parse_archive(path: Path) -> None:
    for member in open_archive(path):
        # One bad member does not end the reading.
        with contextlib.suppress(DataError), member.open() as stream:
            stream.read(MOST_BYTES_READ)


def _parse_manifest(path: Path) -> None:
    Manifest.read(path)


_OUTLINE = coco(annotations=[coco_annotation(segmentation=[[1, 1, 9, 1, 9, 9]])])
_COMPRESSED = coco(annotations=[run_lengths(":5ao5")])
_CIRCLE = labelme_shape(shape_type="circle", points=[[20, 20], [25, 20]])
_RGBA = np.dstack([COLOUR, MONO])

# Each parser with valid files of every kind that it reads.
PARSERS: dict[str, tuple[Callable[[bytes], None], list[bytes]]] = {
    "jpeg": (_parse_picture, [pillow(COLOUR, "JPEG"), pillow(MONO, "JPEG", progressive=True)]),
    "png": (_parse_picture, [png(COLOUR), png(MONO), pillow(COLOUR, "PNG", "P")]),
    "bmp": (_parse_picture, [pillow(COLOUR, "BMP"), pillow(MONO, "BMP"), pillow(MONO, "BMP", "1")]),
    "tiff": (
        _parse_picture,
        [
            tiff(MONO, photometric="minisblack"),
            tiff(COLOUR, photometric="rgb", compression="lzw", predictor=True),
            tiff(COLOUR, photometric="rgb", compression="deflate", tile=(32, 32)),
            tiff(MONO.astype(np.uint16), photometric="minisblack", compression="packbits"),
            tiff(COLOUR, photometric="rgb", compression="zstd", bigtiff=True, byteorder=">"),
        ],
    ),
    "webp": (
        _parse_picture,
        [
            pillow(COLOUR, "WEBP"),
            pillow(COLOUR, "WEBP", lossless=True),
            pillow(_RGBA, "WEBP"),
            pillow(_RGBA, "WEBP", lossless=True),
        ],
    ),
    "mask": (
        _label_parser("mask"),
        [png(index_mask(1)), pillow(index_mask(2), "PNG", "P"), pillow(index_mask(2), "BMP")],
    ),
    "labelme": (_label_parser("labelme"), [labelme(), labelme(shapes=[_CIRCLE])]),
    "voc": (_label_parser("voc"), [voc(), b'<?xml version="1.0" encoding="utf-16"?>' + voc()]),
    "yolo": (_label_parser("yolo"), [b"0 .5 .5 .1 .1\n1 .2 .2 .1 .1\n", b"0 .1 .1 .2 .1 .2 .2"]),
    "coco": (_parse_coco, [coco(), _OUTLINE, coco(annotations=[run_lengths()]), _COMPRESSED]),
    "cvat": (_parse_cvat, [cvat(), cvat('<polygon label="pit" points="1,1;9,9;9,1"/>')]),
    "deeppcb": (_parse_deeppcb, [b"1 1 20 20 1\n3,4,9,9,2\n"]),
    "data.yaml": (_parse_yolo_classes, [b"nc: 2\nnames: [a, b]\n", b"names:\n  0: a\n  1: b\n"]),
    "zip": (_with_file(_parse_archive), [zipped(("a.png", GOOD), ("b.json", labelme()))]),
    "tar": (_with_file(_parse_archive), [_TAR]),
    "tar.gz": (_with_file(_parse_archive), [gzip.compress(_TAR, mtime=0)]),
    "tar.zst": (_with_file(_parse_archive), [zstd.compress(_TAR)]),
    "manifest": (_with_file(_parse_manifest), [_MANIFEST]),
}


def _places(raw: bytes) -> st.SearchStrategy[int]:
    # The head decides most, so half of the damage goes there.
    return st.one_of(st.integers(0, min(len(raw), 200)), st.integers(0, len(raw)))


def _mutate(data: st.DataObject, seeds: list[bytes]) -> bytes:
    raw = data.draw(st.sampled_from(seeds))
    for _ in range(data.draw(st.integers(1, 4))):
        how = data.draw(st.sampled_from(("flip", "cut", "splice", "repeat", "insert", "number")))
        first, second = sorted((data.draw(_places(raw)), data.draw(_places(raw))))
        if how == "flip":
            raw = raw[:first] + data.draw(st.binary(min_size=1, max_size=4)) + raw[first + 1 :]
        elif how == "cut":
            raw = raw[:first] + raw[second:] if data.draw(st.booleans()) else raw[:second]
        elif how == "splice":
            raw = raw[:first] + data.draw(st.sampled_from(seeds))[second:]
        elif how == "repeat":
            raw = raw[:second] + raw[first:second] * data.draw(st.integers(1, 3)) + raw[second:]
        elif how == "insert":
            raw = raw[:first] + data.draw(st.binary(max_size=20)) + raw[first:]
        else:
            extreme = data.draw(
                st.sampled_from((b"\0" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff", b"-1e9"))
            )
            raw = raw[:first] + extreme + raw[first + 4 :]
    return raw


@pytest.mark.timeout(0 if IS_LONG else 600)
@pytest.mark.parametrize("name", PARSERS)
@given(data=st.data())
@FUZZ
def test_a_mutated_file_is_read_or_refused_and_nothing_else(name: str, data: st.DataObject) -> None:
    parse, seeds = PARSERS[name]
    with contextlib.suppress(DataError):
        parse(_mutate(data, seeds))


@pytest.mark.parametrize("name", PARSERS)
@given(raw=st.binary(max_size=400))
@FUZZ
def test_arbitrary_bytes_are_read_or_refused_and_nothing_else(name: str, raw: bytes) -> None:
    parse, seeds = PARSERS[name]
    # Behind the first bytes of a valid file they get past the question which format it is.
    for content in (raw, seeds[0][:8] + raw):
        with contextlib.suppress(DataError):
            parse(content)


@pytest.mark.parametrize("name", PARSERS)
def test_every_file_that_the_mutations_begin_with_is_of_its_format(name: str) -> None:
    parse, seeds = PARSERS[name]
    parse(seeds[0])
