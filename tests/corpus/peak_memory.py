"""Print, as JSON, by how many bytes parsing each entry of the corpus lets this process grow.

``python -m tests.corpus.peak_memory``; Linux only.  The kernel's own high-water mark is read, so
what the codecs allocate outside of Python counts as well.
"""

import contextlib
import ctypes
import gc
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from data import DataError, clean_name, decode_image, open_archive
from data.coco import looks_like_coco, read_coco
from data.label_files import read_label_file
from data.layout import sample_key
from tests.corpus.archives import BROKEN_ARCHIVES, zipped
from tests.corpus.entries import (
    CLASSES,
    COLOUR,
    HEIGHT,
    MONO,
    WIDTH,
    BrokenFile,
    coco,
    index_mask,
    labelme,
    pillow,
    png,
    tiff,
    voc,
)
from tests.corpus.labels import BROKEN_LABELS
from tests.corpus.pictures import BROKEN_NAMES, BROKEN_PICTURES

_SHA256 = "0" * 64
# One of each codec and format, so that no library is loaded while an entry is measured.
_WARM_UP = {
    "a.jpg": pillow(COLOUR, "JPEG"),
    "a.png": png(COLOUR),
    "a.bmp": pillow(COLOUR, "BMP"),
    "a.tif": tiff(MONO, photometric="minisblack", compression="lzw"),
    "a.webp": pillow(COLOUR, "WEBP"),
    "a.json": labelme(),
    "a.xml": voc(),
    "labels/a.txt": b"0 .5 .5 .1 .1",
    "masks/a.png": png(index_mask(1)),
    "coco.json": coco(),
}


def parse_file(name: str, content: bytes, classes: tuple[str, ...] | None = CLASSES) -> None:
    """Read a file as an upload does, without keeping anything."""
    kind = sample_key(clean_name(name)).kind
    if kind == "image":
        decode_image(content, name=name)
    elif kind == "labelme" and looks_like_coco(content):
        read_coco(content, name=name, classes=classes)
    else:
        read_label_file(
            content,
            name=name,
            kind=kind,
            classes=classes,
            file="blobs/x",
            sha256=_SHA256,
            frame_size=(WIDTH, HEIGHT),
        )


def parse_archive(path: Path) -> None:
    """Read every member to its end, a piece at a time."""
    for member in open_archive(path):
        with contextlib.suppress(DataError), member.open() as stream:
            while stream.read(65536):
                pass


def growth_bytes(work: Callable[[], None]) -> int:
    """Return by how much the resident memory exceeds, at its highest, what it was before."""
    gc.collect()
    # Memory that was freed and not given back would hide what is taken again.
    ctypes.CDLL(None).malloc_trim(0)
    # proc(5): 5 sets the high-water mark back to what is resident now.
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    with contextlib.suppress(DataError):
        work()
    return max(_resident("VmHWM") - before, 0)


def _resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


def _parse(entry: BrokenFile) -> Callable[[], None]:
    return lambda: parse_file(entry.name, entry.content, entry.classes)


def measure() -> dict[str, int]:
    """Return the growth of every entry by its name."""
    growth = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "archive"
        path.write_bytes(zipped(("a.png", png(MONO))))
        parse_archive(path)
        for name, content in _WARM_UP.items():
            parse_file(name, content)
        for name, entry in (BROKEN_PICTURES | BROKEN_NAMES | BROKEN_LABELS).items():
            growth[name] = growth_bytes(_parse(entry))
        for name, archive in BROKEN_ARCHIVES.items():
            path.write_bytes(archive.build())
            growth[name] = growth_bytes(lambda: parse_archive(path))
    return growth


if __name__ == "__main__":
    json.dump(measure(), sys.stdout, indent=1)
