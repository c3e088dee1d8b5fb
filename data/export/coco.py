"""Writing a version's outlines and boxes as one COCO file."""

import json
from typing import Any

from data.labels import Box, Polygon, shapes
from data.manifest import Manifest

COCO_NAME = "annotations.json"


def write_coco(manifest: Manifest) -> bytes:
    """Return the COCO file of all frames; one without annotation is good."""
    numbers = {name: number for number, name in enumerate(manifest.classes, start=1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, item in enumerate(manifest.items, start=1):
        size = {"width": item.width, "height": item.height}
        images.append({"id": image_id, "file_name": item.name, **size})
        for shape in shapes(item.labels):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": numbers[shape.class_name],
                    "iscrowd": 0,
                    "area": shape.area_px,
                    **_geometry(shape),
                }
            )
    document = {
        "info": {"description": "Hairline data-set version", "version": manifest.digest},
        "images": images,
        "categories": [{"id": number, "name": name} for name, number in numbers.items()],
        "annotations": annotations,
    }
    return json.dumps(document, ensure_ascii=False).encode()


def _geometry(shape: Polygon | Box) -> dict[str, Any]:
    if isinstance(shape, Box):
        return {"bbox": [shape.x, shape.y, shape.width, shape.height]}
    x, y = zip(*shape.points, strict=True)
    outline = [coordinate for point in shape.points for coordinate in point]
    return {
        "segmentation": [outline],
        "bbox": [min(x), min(y), max(x) - min(x), max(y) - min(y)],
    }
