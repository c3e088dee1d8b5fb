"""A JSON document whose every value knows its place, for errors that point at it."""

import json
import math
from typing import Any, NoReturn, Self

from data.errors import LabelError
from data.limits import MOST_LABELLED_PX


class Place:
    """A value in a document together with its JSON pointer (RFC 6901).

    Args:
        value: The value.
        pointer: Its pointer; "" is the document.
        file: The file as the user knows it.
        tool: What wrote the file and can write it again, for hints.
    """

    __slots__ = ("file", "pointer", "tool", "value")

    def __init__(self, value: Any, pointer: str, file: str, tool: str) -> None:
        self.value = value
        self.pointer = pointer
        self.file = file
        self.tool = tool

    def error(self, code: str, detail: str, hint: str) -> LabelError:
        """Return an error at this place."""
        return LabelError(code, detail, file=self.file, where=self.pointer or "/", hint=hint)

    def has(self, key: str) -> bool:
        """Tell whether this is an object with that field."""
        return isinstance(self.value, dict) and key in self.value

    def field(self, key: str) -> Self:
        """Return an object's field.

        Raises:
            LabelError: ``label_field_missing``.
        """
        escaped = key.replace("~", "~0").replace("/", "~1")
        found = self._at(self.value[key] if self.has(key) else None, escaped)
        if not self.has(key):
            raise found.error(
                "label_field_missing",
                f"The field {key!r} is missing.",
                f"Save the file again with {self.tool}; it writes this field.",
            )
        return found

    def items(self) -> list[Self]:
        """Return a list's values."""
        values = self.expect(list, "a list")
        return [self._at(value, str(index)) for index, value in enumerate(values)]

    def expect(self, kind: type | tuple[type, ...], description: str) -> Any:
        """Return the value if it is of that type.

        Raises:
            LabelError: ``label_field_type``.
        """
        # bool is a subclass of int, and `true` is no number of pixels.
        if not isinstance(self.value, kind) or isinstance(self.value, bool):
            raise self.error(
                "label_field_type",
                f"Expected {description}, found {_shown(self.value)}.",
                f"Save the file again with {self.tool}, or correct the value.",
            )
        return self.value

    def class_name(self) -> str:
        """Return the name of a class."""
        name: str = self.expect(str, "a class name")
        if not name.strip():
            raise self.error(
                "label_field_type", "The class name is empty.", "Name the defect's class."
            )
        return name

    def number(self) -> float:
        """Return a finite number of pixels."""
        try:
            value = float(self.expect((int, float), "a number of pixels"))
        except OverflowError:
            value = math.inf
        if not math.isfinite(value):
            raise self.error(
                "label_field_type", "A coordinate is beyond all measure.", "Correct the point."
            )
        return value

    def size(self) -> int:
        """Return a whole number of pixels, at least 1."""
        side = int(self.expect(int, "a whole number of pixels"))
        if not 1 <= side <= MOST_LABELLED_PX:
            raise self.error(
                "label_field_type",
                f"{_shown(side)} px is no size.",
                f"Save the file again with {self.tool}.",
            )
        return side

    def _at(self, value: Any, step: str) -> Self:
        return type(self)(value, f"{self.pointer}/{step}", self.file, self.tool)


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "..."


def read_json(raw: bytes, *, name: str, tool: str) -> Place:
    """Return a whole document.

    Args:
        raw: The file, UTF-8.
        name: The file as the user knows it.
        tool: What wrote it, for hints.

    Raises:
        LabelError: ``label_not_json`` with the line.
    """

    def refuse_constant(constant: str) -> NoReturn:
        line = raw.count(b"\n", 0, raw.find(constant.encode())) + 1
        raise LabelError(
            "label_not_json",
            f"{constant} is no JSON number.",
            file=name,
            where=f"line {line}",
            hint=f"Save the file again with {tool}, or correct the value.",
        )

    try:
        value = json.loads(raw.decode("utf-8-sig"), parse_constant=refuse_constant)
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        detail, where = "The file is not UTF-8 text.", f"line {line}"
    except json.JSONDecodeError as error:
        detail, where = f"The file is no JSON: {error.msg}.", f"line {error.lineno}"
    except (RecursionError, ValueError) as error:
        # Nesting without end, or an integer of thousands of digits.
        detail, where = f"The file is no reasonable JSON: {error}.", "line 1"
    else:
        return Place(value, "", name, tool)
    raise LabelError(
        "label_not_json",
        detail,
        file=name,
        where=where,
        hint=f"Upload the file as {tool} saved it.",
    )
