"""Archives whose layout is ambiguous, not the one named, or broken: their imports fail whole."""

from dataclasses import dataclass

from tests.corpus.archives import GOOD, zipped
from tests.corpus.entries import CLASSES, index_mask, labelme, png, voc


@dataclass(frozen=True)
class BrokenLayout:
    """One archive whose import must fail before any file is taken in.

    Attributes:
        content: Its bytes.
        code: Of the error.
        file: That the error names.
        where: The place in it.
        hint: A part of the remedy.
        layout: As the sender names it.
        classes: What the data set declares.
    """

    content: bytes
    code: str
    file: str
    where: str
    hint: str
    layout: str | None = None
    classes: tuple[str, ...] | None = CLASSES


_TYPE, _YAML = "label_field_type", "label_not_yaml"
_CORRECT = "or correct the file"
_YOLO = (("images/a.png", GOOD), ("labels/a.txt", b"0 .5 .5 .1 .1\n"))


def _data_yaml(content: bytes, code: str, where: str, hint: str) -> BrokenLayout:
    return BrokenLayout(zipped(*_YOLO, ("data.yaml", content)), code, "data.yaml", where, hint)


BROKEN_LAYOUTS = {
    "two_formats_for_one_frame": BrokenLayout(
        zipped(("a.png", GOOD), ("a.json", labelme()), ("a.xml", voc())),
        "layout_ambiguous",
        "archive",
        "whole file",
        "Name the layout: labelme or voc",
    ),
    "layout_that_is_not_there": BrokenLayout(
        zipped(("a.png", GOOD), ("a.json", labelme())),
        "layout_mismatch",
        "archive",
        "whole file",
        "Leave the layout out",
        layout="voc",
    ),
    "mvtec_without_declared_classes": BrokenLayout(
        zipped(
            ("ring/train/good/000.png", GOOD),
            ("ring/test/pit/000.png", GOOD),
            ("ring/ground_truth/pit/000_mask.png", png(index_mask(255))),
        ),
        "classes_needed",
        "archive",
        "whole file",
        "with its classes: pit",
        classes=None,
    ),
    "data_yaml_that_is_none": _data_yaml(b"names: [a, b\n", _YAML, "line 2", _CORRECT),
    "data_yaml_of_latin_1": _data_yaml(b"names:\n  0: \xe9\n", _YAML, "line 2", _CORRECT),
    "data_yaml_without_names": _data_yaml(b"nc: 2\n", "label_field_missing", "line 1", _CORRECT),
    "data_yaml_of_a_gap": _data_yaml(b"names: {0: scratch, 2: pit}\n", _TYPE, "line 1", _CORRECT),
    "data_yaml_that_miscounts": _data_yaml(
        b"nc: 3\nnames: [scratch, pit]\n", _TYPE, "line 1", _CORRECT
    ),
    "data_yaml_of_an_undeclared_class": _data_yaml(
        b"names: [scratch, stain]\n", "classes_differ", "names", "with these classes"
    ),
    "two_data_yaml_that_differ": BrokenLayout(
        zipped(
            *_YOLO,
            ("data.yaml", b"names: [scratch, pit]\n"),
            ("more/data.yaml", b"names: [pit, scratch]\n"),
        ),
        "classes_differ",
        "more/data.yaml",
        "whole file",
        "one after the other",
    ),
}
