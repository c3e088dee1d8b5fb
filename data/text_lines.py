"""A text file whose every line knows its number, for errors that point at it."""

from dataclasses import dataclass

from data.errors import LabelError


@dataclass(frozen=True)
class TextLine:
    """One line.

    Attributes:
        text: Without its end.
        number: From 1.
        file: The file as the user knows it.
    """

    text: str
    number: int
    file: str

    @property
    def where(self) -> str:
        """The place, as errors name it."""
        return f"line {self.number}"

    def error(self, code: str, detail: str, hint: str) -> LabelError:
        """Return an error at this line."""
        return LabelError(code, detail, file=self.file, where=self.where, hint=hint)


def text_lines(raw: bytes, *, name: str) -> tuple[TextLine, ...]:
    """Return a UTF-8 file's lines.

    Raises:
        LabelError: ``label_not_text`` with the line.
    """
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise LabelError(
            "label_not_text",
            "The file is not UTF-8 text.",
            file=name,
            where=f"line {raw.count(bytes([10]), 0, error.start) + 1}",
            hint="Upload the file as the annotation tool exported it.",
        ) from error
    return tuple(TextLine(line, number, name) for number, line in enumerate(text.splitlines(), 1))
