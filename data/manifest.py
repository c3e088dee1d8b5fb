"""The manifest: one immutable data-set version as JSON Lines.

The first line is a header, each further line one item.  Equal content has equal bytes (sorted keys,
no spaces, items sorted by name, paths relative to a storage root), so the SHA-256 of the bytes
names the version on every machine.
"""

import dataclasses
import hashlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError

from data.bayer import BayerPattern
from data.errors import LayoutError, ManifestError
from data.items import Item, SplitName
from data.labels import BoxLabels, MaskLabels, PolygonLabels, named_classes, shapes
from data.layout import clean_name
from data.statistics import ManifestStatistics, count_items

Task = Literal["segmentation", "detection"]

FORMAT_NAME: Literal["hairline-manifest"] = "hairline-manifest"
FORMAT_VERSION: Literal[1] = 1


def _refuse_null(bayer: BayerPattern | None) -> BayerPattern | None:
    if bayer is None:
        raise ValueError("null stands for nothing here; the key is left out")
    return bayer


@dataclass(frozen=True)
class _Header:
    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    format: Literal["hairline-manifest"]
    format_version: Literal[1]
    task: Task
    classes: tuple[str, ...]
    split_seed: int
    # The count tells a file that lost its last lines from a whole one.
    items: int = Field(ge=0)
    # Left out where no pattern is declared: such manifests keep the digests they always had.
    bayer: Annotated[BayerPattern | None, AfterValidator(_refuse_null)] = None


_HEADER = TypeAdapter(_Header)
_ITEM = TypeAdapter(Item)


@dataclass(frozen=True)
class Manifest:
    """One data-set version; consistent by construction.

    Attributes:
        task: ``segmentation`` or ``detection``.
        classes: Defect classes; a mask's value i + 1 stands for classes[i].
        items: Kept sorted by name, so that equal content has equal bytes.
        split_seed: The seed that `assign_splits` used.
        bayer: The pattern of frames that are raw mosaics, to be read by `data.decode_frame`; items
            have the three channels of the demosaiced frame.  None if they are ordinary pictures.

    Raises:
        ManifestError: Names or classes repeat, a label names no class, a path leaves the root, an
            item can't be a demosaiced mosaic.
    """

    task: Task
    classes: tuple[str, ...]
    items: tuple[Item, ...]
    split_seed: int = 0
    bayer: BayerPattern | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(self.classes))
        object.__setattr__(self, "items", tuple(sorted(self.items, key=lambda item: item.name)))
        _check_classes(self.classes)
        _check_unique(self.items)
        for item in self.items:
            _check_item(item, self.classes)
            if self.bayer is not None:
                _check_mosaic(item)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the canonical bytes, as hex; also that of the file which `write` makes."""
        digest = hashlib.sha256()
        for line in self._canonical_lines():
            digest.update(line)
        return digest.hexdigest()

    def _canonical_lines(self) -> Iterator[bytes]:
        """Yield line after line: the text of a large version is never in memory as a whole."""
        header = _Header(
            FORMAT_NAME,
            FORMAT_VERSION,
            self.task,
            self.classes,
            self.split_seed,
            len(self.items),
            self.bayer,
        )
        yield _canonical_line(
            {key: value for key, value in vars(header).items() if value is not None}
        )
        for item in self.items:
            yield _canonical_line(item)

    def write(self, path: Path) -> None:
        """Write the manifest; ``path`` holds the old file or the whole new one, never a part."""
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.writelines(self._canonical_lines())
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a manifest strictly.

        Raises:
            ManifestError: The file is missing or cut off, a line is no valid item, or the items
                contradict each other; ``where`` is the line, with a JSON pointer inside it.
        """
        try:
            with path.open("rb") as file:
                return cls._parse(file, str(path))
        except OSError as error:
            raise ManifestError(
                "manifest_unreadable",
                f"The manifest can't be read: {error.strerror}.",
                file=str(path),
                hint="Freeze the data-set version again.",
            ) from error

    @classmethod
    def _parse(cls, file: Iterable[bytes], name: str) -> Self:
        lines = _whole_lines(file, name)
        header = _parse_line(_HEADER, next(lines, b""), name, 1)
        items = tuple(_parse_line(_ITEM, line, name, n) for n, line in enumerate(lines, 2))
        if len(items) != header.items:
            found = f"The header promises {header.items} items, {len(items)} follow"
            raise _cut_off(name, len(items) + 2, found)
        try:
            return cls(header.task, header.classes, items, header.split_seed, header.bayer)
        except ManifestError as error:
            raise error.renamed(name) from error

    def subset(self, split: SplitName) -> Self:
        """Return the manifest of one split's items."""
        return dataclasses.replace(
            self, items=tuple(item for item in self.items if item.split == split)
        )

    def statistics(self) -> ManifestStatistics:
        """Count frames, defects and sizes by split and class."""
        return count_items(self.items, self.classes)


def _whole_lines(file: Iterable[bytes], name: str) -> Iterator[bytes]:
    for number, line in enumerate(file, 1):
        if not line.endswith(b"\n"):
            raise _cut_off(name, number, "The last line does not end")
        yield line[:-1]


def _canonical_line(record: Any) -> bytes:
    text = json.dumps(
        record,
        # dataclasses.asdict copies every point of every outline first, which took longer than all
        # the rest of freezing a version.
        default=vars,
        ensure_ascii=False,
        allow_nan=False,
        sort_keys=True,
        separators=(",", ":"),
    )
    return text.encode() + b"\n"


def _parse_line(adapter: TypeAdapter[Any], line: bytes, name: str, number: int) -> Any:
    try:
        # pydantic keeps the last of repeated keys without a word.
        _REPEATED_KEYS.decode(line.decode())
        return adapter.validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        pointer = "".join(f"/{part}" for part in first["loc"])
        place, detail = f"line {number} {pointer}".rstrip(), first["msg"]
    except (ValueError, RecursionError) as error:
        place, detail = f"line {number}", str(error)
    raise ManifestError(
        "manifest_line",
        f"The line is not valid: {detail}.",
        file=name,
        where=place,
        hint="A manifest is never edited by hand; freeze the data-set version again.",
    )


def _refuse_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) < len(pairs):
        repeated = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {repeated!r} repeats")
    return unique


# Made once: json.loads makes a decoder for every line, which takes a third of its time.
_REPEATED_KEYS = json.JSONDecoder(object_pairs_hook=_refuse_repeated_keys)


def _cut_off(name: str, line: int, detail: str) -> ManifestError:
    return ManifestError(
        "manifest_cut_off",
        f"{detail}; the manifest was cut off or joined.",
        file=name,
        where=f"line {line}",
        hint="Copy the manifest again, or freeze the data-set version again.",
    )


def _contradiction(detail: str, where: str | None = None) -> ManifestError:
    return ManifestError(
        "manifest_inconsistent",
        detail,
        where=where,
        hint="Correct the data set and freeze the version again.",
    )


def _check_classes(classes: tuple[str, ...]) -> None:
    # A mask stores class indices in 8 bits, and 255 is the usual "other" value.
    if not 1 <= len(classes) <= 254 or len(set(classes)) != len(classes):
        raise _contradiction(f"A data set has 1 to 254 different classes, not {list(classes)}.")
    if not all(name.strip() for name in classes):
        raise _contradiction("A class has an empty name.")


def _check_unique(items: tuple[Item, ...]) -> None:
    for field, values in (
        ("name", Counter(item.name for item in items)),
        ("key", Counter(item.key for item in items)),
    ):
        repeated = sorted(value for value, count in values.items() if count > 1)
        if repeated:
            raise _contradiction(f"Two items have the {field} {repeated[0]!r}.")


def _check_mosaic(item: Item) -> None:
    if item.channels != 3 or item.width % 2 or item.height % 2:
        found = f"{item.width}x{item.height} px and {item.channels} channels"
        raise _contradiction(f"A demosaiced Bayer frame can't have {found}.", item.name)


def _check_item(item: Item, classes: tuple[str, ...]) -> None:
    labels = item.labels
    paths = [item.file] + ([labels.file] if isinstance(labels, MaskLabels) else [])
    for path in paths:
        try:
            is_clean = clean_name(path) == path
        except LayoutError:
            is_clean = False
        if not is_clean:
            raise _contradiction(f"The path {path!r} is not relative to the root.", item.name)
    if isinstance(labels, PolygonLabels | BoxLabels):
        strange = named_classes(labels) - set(classes)
        if strange or not shapes(labels):
            found = f"classes {sorted(strange)}" if strange else "no shape"
            raise _contradiction(f"The labels have {found}; classes: {list(classes)}.", item.name)
    if isinstance(labels, MaskLabels):
        values = (*labels.values, *(value for value, _ in labels.defects))
        if not labels.values or not all(1 <= value <= len(classes) for value in values):
            raise _contradiction(f"The mask values {labels.values} are no classes.", item.name)
