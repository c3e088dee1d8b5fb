"""What the room refuses: each error names the file, the place and the remedy.

DataError
├── ImageError      a picture that can't be decoded, or must not be
├── LabelError      an annotation that can't be meant as it is written
├── LayoutError     file names, folders, pairing and splits
├── ArchiveError    a zip or tar file, or one of its members
└── ManifestError   a manifest that is damaged or contradicts itself
"""

from typing import Any, Self


class DataError(Exception):
    """An error about a user's file, with a stable ``code`` and a remedy.

    Args:
        code: A stable snake_case word that programs may compare; docs/data-errors.md lists them.
        detail: One sentence for a person.
        file: The file at fault, as the user named it.
        where: The place in the file: a JSON pointer, ``line 3`` or ``pixel (x=10, y=20)``.
        hint: What to do about it.
    """

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        file: str | None = None,
        where: str | None = None,
        hint: str | None = None,
    ) -> None:
        place = ": ".join(part for part in (file, where) if part)
        sentence = f"{place}: {detail}" if place else detail
        super().__init__(f"{sentence} {hint}" if hint else sentence)
        self.code = code
        self.detail = detail
        self.file = file
        self.where = where
        self.hint = hint

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions pickle by their positional arguments; without this an error raised in a data
        # loader's worker process would reach its parent as a TypeError.
        return (_rebuild, (type(self), self.code, self.detail, self.file, self.where, self.hint))

    def renamed(self, file: str) -> Self:
        """Return the same error about ``file``, for callers that know the user's own name."""
        return type(self)(self.code, self.detail, file=file, where=self.where, hint=self.hint)


def _rebuild(
    kind: type[DataError],
    code: str,
    detail: str,
    file: str | None,
    where: str | None,
    hint: str | None,
) -> DataError:
    return kind(code, detail, file=file, where=where, hint=hint)


class ImageError(DataError):
    """A picture that can't be decoded, or must not be."""


class LabelError(DataError):
    """An annotation that can't be meant as it is written."""


class LayoutError(DataError):
    """File names, folders, pairing and splits."""


class ArchiveError(DataError):
    """A zip or tar file, or one of its members."""


class ManifestError(DataError):
    """A manifest that is damaged or contradicts itself."""
