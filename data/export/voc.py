"""Writing a frame's boxes as a Pascal VOC file, which lies beside its frame."""

from collections.abc import Iterator, Sequence
from xml.etree import ElementTree as ET

from data.decimal_places import EXACT
from data.export.decimals import DECIMALS, DecimalOf, written
from data.items import Item
from data.labels import Box, BoxLabels


def voc_name(item: Item) -> str:
    """Return what the frame's label file is called."""
    return f"{item.name.rpartition('.')[0]}.xml"


def write_voc(item: Item, classes: Sequence[str]) -> Iterator[bytes]:  # noqa: ARG001 - classes are named, not numbered.
    """Yield the frame's label file with ever more digits."""
    for decimal_of in DECIMALS:
        root = ET.Element("annotation")
        _add(root, "filename", item.name.rpartition("/")[2])
        size = _add(root, "size")
        for tag, value in (("width", item.width), ("height", item.height)):
            _add(size, tag, str(value))
        _add(size, "depth", str(item.channels))
        _add(root, "segmented", "0")
        for box in item.labels.boxes if isinstance(item.labels, BoxLabels) else ():
            _add_object(root, box, decimal_of)
        ET.indent(root)
        yield ET.tostring(root, encoding="utf-8") + b"\n"


def _add_object(root: ET.Element, box: Box, decimal_of: DecimalOf) -> None:
    found = _add(root, "object")
    _add(found, "name", box.class_name)
    _add(found, "pose", "Unspecified")
    _add(found, "truncated", "0")
    _add(found, "difficult", "0")
    corners = _add(found, "bndbox")
    x, y = decimal_of(box.x), decimal_of(box.y)
    one = decimal_of(1.0)
    # Pixels are counted from 1, and the last one belongs to the box.
    _add(corners, "xmin", written(EXACT.add(x, one)))
    _add(corners, "ymin", written(EXACT.add(y, one)))
    _add(corners, "xmax", written(EXACT.add(x, decimal_of(box.width))))
    _add(corners, "ymax", written(EXACT.add(y, decimal_of(box.height))))


def _add(parent: ET.Element, tag: str, text: str | None = None) -> ET.Element:
    child = ET.SubElement(parent, tag)
    child.text = text
    return child
