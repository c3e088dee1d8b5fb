from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import LabelError
from data.yolo_classes import read_yolo_classes


def read(text: str | bytes) -> Any:
    raw = text.encode() if isinstance(text, str) else text
    return read_yolo_classes(raw, name="data.yaml")


@pytest.mark.parametrize(
    "text",
    [
        "train: images\nnc: 2\nnames: ['spur', 'short']\n",
        "names:\n  1: short\n  0: spur\n",
        "names:\n- spur\n- short  # a comment\n",
    ],
)
def test_the_classes_are_read_in_the_order_of_their_numbers(text: str) -> None:
    assert read(text) == ("spur", "short")


def test_a_class_is_called_what_is_written_even_where_yaml_reads_a_value() -> None:
    assert read("names: [no, 1, 2025-01-01]") == ("no", "1", "2025-01-01")


@pytest.mark.parametrize(
    ("text", "code", "where"),
    [
        ("nc: 2\n", "label_field_missing", "line 1"),
        ("nc: 3\nnames: [spur, short]", "label_field_type", "line 1"),
        ("nc: 2\nnames: [spur, spur]", "label_field_type", "line 2"),
        ("names: []", "label_field_type", "line 1"),
        ("names: spur", "label_field_type", "line 1"),
        ("names:\n- spur\n-\n", "label_field_type", "line 3"),
        ("names:\n- spur\n- [short]\n", "label_field_type", "line 3"),
        ("names:\n  0: spur\n  2: short\n", "label_field_type", "line 3"),
        ("names:\n  0: spur\n  0: short\n", "label_field_type", "line 3"),
        ("names: [a]\nnames: [b]", "label_field_type", "line 2"),
        ("- spur", "label_field_type", "line 1"),
        ("", "label_field_type", "line 1"),
        ("nc: 1\nnames: [spur", "label_not_yaml", "line 2"),
        (b"nc: 1\nnames: [\xff]", "label_not_yaml", "line 2"),
        ("names: [" + "x" * 100_000 + "]", "label_not_yaml", "line 1"),
    ],
)
def test_an_error_names_the_line(text: str | bytes, code: str, where: str) -> None:
    with pytest.raises(LabelError) as caught:
        read(text)
    assert (caught.value.code, caught.value.where, caught.value.file) == (code, where, "data.yaml")
    assert caught.value.hint


def test_an_object_that_python_would_build_is_only_text() -> None:
    with pytest.raises(LabelError):
        read("names: !!python/object/apply:os.system ['true']\nnc: 9")


@given(st.text("names:[]{}&*!- \n0a1,'\"", max_size=60) | st.binary(max_size=60))
def test_no_content_raises_anything_but_its_error(content: str | bytes) -> None:
    raw = content if isinstance(content, bytes) else f"names: {content}".encode()
    try:
        classes = read(raw)
    except LabelError as error:
        assert (error.file, bool(error.where), bool(error.hint)) == ("data.yaml", True, True)  # noqa: PT017 - some contents are refused, some are not.
        return
    assert len(set(classes)) == len(classes) > 0
