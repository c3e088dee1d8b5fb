"""Broken files that hold the labels of many frames: COCO's run-length masks, and CVAT's XML."""

from typing import Any

from tests.corpus.entries import HEIGHT, WIDTH, BrokenFile, coco, coco_annotation

_AREA = WIDTH * HEIGHT
_TYPE = "label_field_type"


def run_lengths(counts: Any = (10, 5, _AREA - 15), **changes: Any) -> dict[str, Any]:
    """Return a COCO annotation whose mask is told by run lengths."""
    mask = {"size": [HEIGHT, WIDTH], "counts": counts if isinstance(counts, str) else list(counts)}
    return coco_annotation(segmentation=mask | changes.pop("mask", {}), **changes)


def _coco(annotations: list[dict[str, Any]], code: str, where: str, hint: str) -> BrokenFile:
    two = [{"id": 1, "name": "scratch"}, {"id": 2, "name": "pit"}]
    content = coco(categories=two, annotations=annotations)
    return BrokenFile("coco.json", content, code, where, hint, frame="a.png")


def cvat(shapes: str | None = None, name: str = "a.png", width: object = WIDTH) -> bytes:
    """Return a valid CVAT file with its shapes or its frame's attributes replaced."""
    shapes = cvat_box() if shapes is None else shapes
    image = f'<image id="0" name="{name}" width="{width}" height="{HEIGHT}">\n{shapes}\n</image>'
    return f"<annotations>\n<version>1.1</version>\n{image}\n</annotations>".encode()


def cvat_box(label: str = "scratch", right: object = 30, more: str = "") -> str:
    """Return a CVAT box."""
    return f'<box label="{label}" xtl="10" ytl="10" xbr="{right}" ybr="20" {more}/>'


_IMAGE = cvat().split(b"</version>")[1].removesuffix(b"</annotations>")


def _xml(content: bytes, code: str, where: str, hint: str) -> BrokenFile:
    return BrokenFile("annotations.xml", content, code, where, hint, frame="a.png")


def _shape(shape: str, code: str, hint: str) -> BrokenFile:
    return _xml(cvat(shape), code, "line 4", hint)


BROKEN_MANY_FRAMES = {
    # COCO's run-length masks
    "rle_of_another_size": _coco(
        [run_lengths(mask={"size": [WIDTH, HEIGHT]})],
        "label_size_mismatch",
        "/annotations/0/segmentation/size",
        "masks of their frames' size",
    ),
    "rle_that_stops_early": _coco(
        [run_lengths((10, 5))], _TYPE, "/annotations/0/segmentation/counts", "Export the file again"
    ),
    "rle_that_runs_on": _coco(
        [run_lengths((10, 5, _AREA))],
        _TYPE,
        "/annotations/0/segmentation/counts",
        "Export the file again",
    ),
    "rle_of_a_negative_run": _coco(
        [run_lengths((-1, _AREA + 1))],
        _TYPE,
        "/annotations/0/segmentation/counts/0",
        "Export the file again",
    ),
    "rle_of_garbage": _coco(
        [run_lengths("ooo")], _TYPE, "/annotations/0/segmentation/counts", "Export the file again"
    ),
    "rle_of_nothing": _coco(
        [run_lengths((_AREA,))],
        "mask_empty",
        "/annotations/0/segmentation/counts",
        "Draw the object",
    ),
    "rle_of_two_classes_at_one_pixel": _coco(
        [run_lengths(), run_lengths(id=2, category_id=2)],
        "mask_overlap",
        "/annotations/1/segmentation",
        "do not overlap",
    ),
    "rle_beside_a_box": _coco(
        [run_lengths(), coco_annotation(id=2)],
        "label_mixed",
        "/annotations/1",
        "every object a box",
    ),
    "rle_without_declared_classes": BrokenFile(
        "coco.json",
        coco(annotations=[run_lengths()]),
        "label_classes_needed",
        "/annotations/0/segmentation",
        "with its classes",
        classes=None,
        frame="a.png",
    ),
    # CVAT
    "cvat_cut_off": _xml(cvat()[:-20], "label_not_xml", "line 5", "exported it"),
    "cvat_with_a_document_type": _xml(
        b"<!DOCTYPE a>" + cvat(), "label_not_xml", "line 1", "exported it"
    ),
    "cvat_of_video": _xml(
        b"<annotations><track/></annotations>", _TYPE, "line 1", "CVAT for images 1.1"
    ),
    "cvat_name_that_climbs": _xml(
        cvat(name="../a.png"), "unsafe_name", "line 3", "Rename the file"
    ),
    "cvat_without_a_width": _xml(
        cvat().replace(b"width=", b"w="),
        "label_field_missing",
        "line 3",
        "it writes this attribute",
    ),
    "cvat_of_no_width": _xml(cvat(width=0), "label_field_type", "line 3", "Export the file again"),
    "cvat_of_another_size": _xml(
        cvat(width=WIDTH + 1), "label_size_mismatch", "line 3", "drawn on this picture"
    ),
    "cvat_of_two_frames_of_one_name": _xml(
        cvat().replace(b"</annotations>", _IMAGE + b"</annotations>"), _TYPE, "line 7", "one entry"
    ),
    "cvat_of_an_unknown_class": _shape(cvat_box("stain"), "unknown_class", "with this class"),
    "cvat_box_of_no_width": _shape(cvat_box(right=10), "box_empty", "Draw the box again"),
    "cvat_box_outside": _shape(cvat_box(right=200), "box_outside_frame", "Move the shape inside"),
    "cvat_box_that_is_no_number": _shape(
        cvat_box(right="nan"), "label_field_type", "Correct the value"
    ),
    "cvat_box_turned": _shape(
        cvat_box(more='rotation="30"'), "unsupported_shape", "Draw it as polygon"
    ),
    "cvat_mask": _shape(
        '<mask label="scratch" rle="1, 2" left="1" top="1" width="3" height="1"/>',
        "unsupported_shape",
        "run-length masks",
    ),
    "cvat_polyline": _shape(
        '<polyline label="scratch" points="1,1;9,9"/>', "unsupported_shape", "Draw it as polygon"
    ),
    "cvat_outline_of_two_points": _shape(
        '<polygon label="scratch" points="1,1;9,9"/>', "polygon_too_short", "Draw the outline again"
    ),
    "cvat_outline_that_is_cut": _shape(
        '<polygon label="scratch" points="1,1;9,9;9"/>',
        "polygon_too_short",
        "Draw the outline again",
    ),
}
