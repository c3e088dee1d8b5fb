"""Broken label files of every format."""

import numpy as np

from tests.corpus.entries import (
    COLOUR,
    HEIGHT,
    WIDTH,
    BrokenFile,
    coco,
    coco_annotation,
    flipped,
    index_mask,
    labelme,
    labelme_shape,
    pillow,
    png,
    voc,
    voc_object,
)

_FIELD, _SAVED, _TYPE = "label_field_missing", "label_not_json", "label_field_type"


def _labelme(content: bytes, code: str, where: str, hint: str) -> BrokenFile:
    return BrokenFile("a.json", content, code, where, hint, frame="a.png")


def _shape(code: str, where: str, hint: str, **changes: object) -> BrokenFile:
    return _labelme(labelme(shapes=[labelme_shape(**changes)]), code, where, hint)


def _voc(content: bytes, code: str, where: str, hint: str) -> BrokenFile:
    return BrokenFile("a.xml", content, code, where, hint, frame="a.png")


def _yolo(content: bytes, code: str, where: str, hint: str) -> BrokenFile:
    return BrokenFile("labels/a.txt", content, code, where, hint, frame="images/a.png")


def _coco(content: bytes, code: str, where: str, hint: str) -> BrokenFile:
    return BrokenFile("coco.json", content, code, where, hint, frame="a.png")


def _mask(content: bytes, code: str, where: str, hint: str) -> BrokenFile:
    return BrokenFile("masks/a.png", content, code, where, hint, frame="images/a.png")


_XXE = b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>'
_LAUGHS = b'<!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]><annotation>&b;</annotation>'
_MASK = png(index_mask(1))

BROKEN_LABELS = {
    # LabelMe
    "labelme_cut_off": _labelme(labelme()[:-20], _SAVED, "line 1", "as LabelMe saved it"),
    "labelme_of_latin_1": _labelme(b'{"a":\n"\xe9"}', _SAVED, "line 2", "as LabelMe saved it"),
    "labelme_of_nan": _labelme(
        labelme(imageWidth=float("nan")), _SAVED, "line 1", "correct the value"
    ),
    "labelme_nested_without_end": _labelme(b"[" * 100_000, _SAVED, "line 1", "as LabelMe saved it"),
    "labelme_of_an_endless_number": _labelme(
        b'{"imageWidth": ' + b"9" * 5000 + b"}", _SAVED, "line 1", "as LabelMe saved it"
    ),
    "labelme_that_is_a_list": _labelme(b"[1]", _TYPE, "/", "Save the file again"),
    "labelme_empty": _labelme(b"", _SAVED, "line 1", "as LabelMe saved it"),
    "labelme_without_size": _labelme(
        labelme(imageWidth="drop"), _FIELD, "/imageWidth", "Save the file again"
    ),
    "labelme_of_absurd_size": _labelme(
        labelme(imageWidth=10**30), _TYPE, "/imageWidth", "Save the file again"
    ),
    "labelme_of_another_size": _labelme(
        labelme(imageWidth=100), "label_size_mismatch", "whole file", "never rescaled"
    ),
    "labelme_shapes_as_text": _labelme(
        labelme(shapes="none"), _TYPE, "/shapes", "Save the file again"
    ),
    "labelme_of_an_unknown_class": _shape(
        "unknown_class", "/shapes/0/label", "Correct the label", label="rust"
    ),
    "labelme_of_an_unnamed_class": _shape(_TYPE, "/shapes/0/label", "Name the defect", label=" "),
    "labelme_line": _shape(
        "unsupported_shape", "/shapes/0/shape_type", "polygon", shape_type="linestrip"
    ),
    "labelme_of_two_points": _shape(
        "polygon_too_short", "/shapes/0/points", "Draw the outline again", points=[[1, 1], [2, 2]]
    ),
    "labelme_point_outside": _shape(
        "polygon_outside_frame",
        "/shapes/0/points/2",
        "inside the frame",
        points=[[1, 1], [2, 2], [97, 3]],
    ),
    "labelme_point_of_three": _shape(
        _TYPE, "/shapes/0/points/0", "Correct the point", points=[[1, 1, 1], [2, 2], [3, 3]]
    ),
    "labelme_point_beyond_measure": _shape(
        _TYPE, "/shapes/0/points/0/0", "Correct the point", points=[[10**400, 1], [2, 2], [3, 3]]
    ),
    # Pascal VOC
    "voc_cut_off": _voc(voc()[:-5], "label_not_xml", "line 4", "exported it"),
    "voc_that_reads_other_files": _voc(_XXE, "label_not_xml", "line 1", "exported it"),
    "voc_of_a_billion_laughs": _voc(_LAUGHS, "label_not_xml", "line 1", "exported it"),
    "voc_nested_without_end": _voc(b"<a>" * 5000, "label_not_xml", "line 1", "for each frame"),
    "voc_of_no_known_encoding": _voc(
        b'<?xml version="1.0" encoding="klingon"?><a/>', "label_not_xml", "line 1", "exported it"
    ),
    "voc_of_another_root": _voc(b"<html/>", _TYPE, "line 1", "Pascal VOC file"),
    "voc_without_size": _voc(b"<annotation/>", _FIELD, "line 1", "Export the file again"),
    "voc_of_infinite_size": _voc(
        voc("<size><width>inf</width><height>9</height></size>"), _TYPE, "line 2", "Correct"
    ),
    "voc_of_an_unknown_class": _voc(
        voc(found=voc_object("rust")), "unknown_class", "line 3", "Correct the label"
    ),
    "voc_box_that_ends_before_it_begins": _voc(
        voc(found=voc_object(box=(30, 11, 11, 20))), "box_empty", "line 3", "Draw the box again"
    ),
    "voc_box_outside": _voc(
        voc(found=voc_object(box=(11, 11, 300, 20))), "box_outside_frame", "line 3", "inside"
    ),
    "voc_side_that_is_no_number": _voc(
        voc(found=voc_object(box=("left", 11, 30, 20))), _TYPE, "line 3", "Correct the value"
    ),
    # YOLO
    "yolo_of_latin_1": _yolo(b"0 .5 .5 .1 .1\n\xe9", "label_not_text", "line 2", "exported it"),
    "yolo_class_by_name": _yolo(b"pit .5 .5 .1 .1", _TYPE, "line 1", "number of its class"),
    "yolo_class_beyond_the_last": _yolo(
        b"0 .5 .5 .1 .1\n2 .5 .5 .1 .1", "unknown_class", "line 2", "data.yaml"
    ),
    "yolo_of_six_numbers": _yolo(b"0 .5 .5 .1 .1 .9", _TYPE, "line 1", "confidence"),
    "yolo_of_no_numbers": _yolo(b"0 .5 .5 nan .1", _TYPE, "line 1", "Correct the value"),
    "yolo_box_of_no_width": _yolo(b"0 .5 .5 0 .1", "box_empty", "line 1", "Draw the box again"),
    "yolo_box_in_pixels": _yolo(b"0 40 30 9 9", "box_outside_frame", "line 1", "normalized"),
    "yolo_outline_outside": _yolo(
        b"0 .1 .1 .2 .1 1.5 .2", "polygon_outside_frame", "line 1", "normalized"
    ),
    "yolo_of_boxes_and_outlines": _yolo(
        b"0 .5 .5 .1 .1\n0 .1 .1 .2 .1 .2 .2", "label_mixed", "line 2", "every object"
    ),
    "yolo_before_its_frame": BrokenFile(
        "labels/a.txt", b"0 .5 .5 .1 .1", "label_frame_needed", "whole file", "frame first"
    ),
    "yolo_without_classes": BrokenFile(
        "labels/a.txt",
        b"0 .5 .5 .1 .1",
        "label_classes_needed",
        "whole file",
        "with its classes",
        classes=None,
    ),
    # COCO
    "coco_without_categories": _coco(
        b'{"images": [], "annotations": []}', _FIELD, "/categories", "Save the file again"
    ),
    "coco_cut_off": _coco(coco()[:-3], _SAVED, "line 1", "saved it"),
    "coco_of_no_frame": _coco(coco(images=[]), _TYPE, "/images", "Export the file again"),
    "coco_name_that_climbs": _coco(
        coco(images=[{"id": 1, "file_name": "../a.png", "width": WIDTH, "height": HEIGHT}]),
        "unsafe_name",
        "/images/0/file_name",
        "Rename",
    ),
    "coco_of_an_unknown_frame": _coco(
        coco(annotations=[coco_annotation(image_id=9)]), _TYPE, "/annotations/0/image_id", "Add"
    ),
    "coco_of_an_unknown_category": _coco(
        coco(annotations=[coco_annotation(category_id=9)]),
        _TYPE,
        "/annotations/0/category_id",
        "Add the category",
    ),
    "coco_of_an_unknown_class": _coco(
        coco(categories=[{"id": 1, "name": "rust"}]),
        "unknown_class",
        "/annotations/0/category_id",
        "Correct the label",
    ),
    "coco_box_of_no_width": _coco(
        coco(annotations=[coco_annotation(bbox=[1, 1, 0, 5])]),
        "box_empty",
        "/annotations/0/bbox",
        "Draw the box again",
    ),
    "coco_box_outside": _coco(
        coco(annotations=[coco_annotation(bbox=[90, 1, 20, 5])]),
        "box_outside_frame",
        "/annotations/0/bbox",
        "inside the frame",
    ),
    "coco_outline_of_two_points": _coco(
        coco(annotations=[coco_annotation(segmentation=[[1, 1, 2, 2]])]),
        "polygon_too_short",
        "/annotations/0/segmentation/0",
        "Draw the outline again",
    ),
    "coco_of_another_size": _coco(
        coco(images=[{"id": 1, "file_name": "a.png", "width": 100, "height": HEIGHT}]),
        "label_size_mismatch",
        "/images/0",
        "never rescaled",
    ),
    # Index masks
    "mask_as_jpeg": _mask(pillow(index_mask(1), "JPEG"), "mask_lossy", "whole file", "as PNG"),
    "mask_as_lossy_webp": _mask(
        pillow(np.stack([index_mask(1)] * 3, 2), "WEBP"), "mask_lossy", "whole file", "as PNG"
    ),
    "mask_in_colour": _mask(png(COLOUR), "mask_colour", "pixel (x=0, y=0)", "one channel"),
    "mask_of_no_class": _mask(
        png(index_mask(3)), "mask_value", "pixel (x=40, y=20)", "anti-aliasing"
    ),
    "mask_of_another_size": _mask(
        png(index_mask(1)[:40]), "label_size_mismatch", "whole file", "never rescaled"
    ),
    "mask_with_a_flipped_bit": _mask(
        flipped(_MASK, len(_MASK) // 2),
        "image_damaged",
        f"byte {_MASK.index(b'IDAT') - 4}",
        "Copy it again",
    ),
    "mask_of_one_class_alone": BrokenFile(
        "masks/pit/a.png",
        _MASK,
        "mask_of_one_class",
        "file name",
        "layout class_masks",
        frame="images/a.png",
    ),
    "mask_that_is_text": _mask(b"0 0 0 1", "image_unknown_format", "whole file", "picture itself"),
}
