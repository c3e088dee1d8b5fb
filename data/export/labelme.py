"""Writing a frame's outlines as a LabelMe file, which lies beside its frame."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from data.items import Item
from data.labels import shapes


def labelme_name(item: Item) -> str:
    """Return what the frame's label file is called."""
    return f"{item.name.rpartition('.')[0]}.json"


def write_labelme(item: Item, classes: Sequence[str]) -> Iterator[bytes]:  # noqa: ARG001 - classes are named, not numbered.
    """Yield the frame's label file; LabelMe finds the picture by ``imagePath``."""
    document: dict[str, Any] = {
        "version": "5.5.0",
        "flags": {},
        "shapes": [
            {
                "label": shape.class_name,
                "points": getattr(shape, "points", ()),
                "group_id": None,
                "description": "",
                "shape_type": "polygon",
                "flags": {},
                "mask": None,
            }
            for shape in shapes(item.labels)
        ],
        "imagePath": item.name.rpartition("/")[2],
        "imageData": None,
        "imageHeight": item.height,
        "imageWidth": item.width,
    }
    yield json.dumps(document, ensure_ascii=False, indent=2).encode()
