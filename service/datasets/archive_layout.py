"""An archive's members in the order and in the roles that its layout gives them."""

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from data.archive import ArchiveMember, open_archive
from data.errors import DataError, LayoutError
from data.recognition import (
    Layout,
    LayoutName,
    check_classes,
    files_to_look_into,
    recognize_layout,
)

# What errors call the request's body, which has no name of its own.
ARCHIVE_NAME = "archive"

# What macOS and Windows put into folders without being asked; nobody means to upload it.
_LITTER = frozenset({".DS_Store", "Thumbs.db", "desktop.ini"})


def members(path: Path) -> Iterator[ArchiveMember]:
    """Yield an archive's members but an operating system's own, in their order.

    Raises:
        ArchiveError: The archive is damaged or none at all.
    """
    for member in open_archive(path):
        *folders, name = member.name.split("/")
        if not ("__MACOSX" in folders or name in _LITTER):
            yield member


def archive_layout(
    path: Path,
    *,
    named: LayoutName | None,
    declared: Sequence[str] | None,
    max_file_bytes: int,
) -> Layout:
    """Return an archive's layout, named or recognized, and checked against declared classes.

    Args:
        path: The archive.
        named: As the sender names it; None recognizes.
        declared: The data set's classes.
        max_file_bytes: Larger members are not looked into; the import refuses them.

    Raises:
        DataError: The archive is damaged, its layout is ambiguous or not the one named, or it names
            classes that the data set does not declare.
    """
    names = [member.name for member in members(path) if member.problem is None]
    contents = _read(path, set(files_to_look_into(names)), max_file_bytes)
    layout = recognize_layout(names, contents, named=named, declared=declared, file=ARCHIVE_NAME)
    check_classes(layout, declared)
    if layout.name == "mvtec" and declared is None:
        # An index mask keeps numbers, and nothing else could say what they stand for.
        raise LayoutError(
            "classes_needed",
            "MVTec's defect folders are classes, and the data set declares none.",
            file=ARCHIVE_NAME,
            hint=f"Create the data set with its classes: {', '.join(layout.classes or ())}.",
        )
    return layout


def frames_first(path: Path, layout: Layout) -> Iterator[ArchiveMember]:
    """Yield the frames and then everything else: a tar file can be read forwards only."""
    for wanted in (True, False):
        for member in members(path):
            if layout.is_frame(member.name) is wanted:
                yield member


def _read(path: Path, wanted: Collection[str], max_file_bytes: int) -> dict[str, bytes]:
    contents: dict[str, bytes] = {}
    if not wanted:
        return contents
    for member in members(path):
        if member.name in wanted and member.problem is None and member.size <= max_file_bytes:
            try:
                with member.open() as stream:
                    contents[member.name] = stream.read()
            except DataError:
                # The import reports it when the file's turn comes.
                continue
        if len(contents) == len(wanted):
            break
    return contents
