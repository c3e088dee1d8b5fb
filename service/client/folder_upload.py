"""Uploading a folder: frames first, in requests of bounded size, going on where it was cut off.

Sending a file again is safe, because the service knows it by its digest. A frame that is there
already is not even sent: of a folder of 20 GB only what is missing goes over the line, and what the
service has lost or found damaged on its disk.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from data.layout import is_frame, is_yolo_list
from data.recognition import yolo_classes
from data.yolo_classes import is_yolo_class_file
from service.client.client import HairlineClient, HairlineError
from service.datasets.resources import ItemResource
from service.errors import FileOutcome

# Small enough that a cut connection costs little, large enough that requests cost nothing.
_REQUEST_BYTES = 64 * 1024**2
_REQUEST_FILES = 50

# Bytes dealt with, and bytes of the whole folder.
Progress = Callable[[int, int], None]

_OUTCOMES = TypeAdapter(list[FileOutcome])


@dataclass(frozen=True)
class FolderUpload:
    """What became of a folder's files.

    Attributes:
        accepted: Files the service took in.
        known: Files that were there already, sent again or not.
        rejected: Outcomes of the others, each with its reason.
    """

    accepted: int
    known: int
    rejected: tuple[FileOutcome, ...]

    @property
    def files(self) -> int:
        """All files of the folder."""
        return self.accepted + self.known + len(self.rejected)


@dataclass(frozen=True)
class LocalFile:
    """A file to upload.

    Attributes:
        name: Relative to the folder, with forward slashes.
        path: Where it is.
        size: Bytes.
    """

    name: str
    path: Path
    size: int


@dataclass(frozen=True)
class FolderFiles:
    """The files below a folder.

    Attributes:
        files: Frames first.
        unreadable: Outcomes of those that can't be looked at.
        yolo_lists: Files that only say how a YOLO set is divided, which are not sent.
    """

    files: tuple[LocalFile, ...]
    unreadable: tuple[FileOutcome, ...]
    yolo_lists: tuple[LocalFile, ...] = ()

    def yolo_classes(self) -> tuple[str, ...] | None:
        """Return the classes in the order in which YOLO files number them; None if no file says.

        Raises:
            DataError: A ``data.yaml`` is wrong, or two contradict each other.
            OSError: It can't be read.
        """
        named = [file for file in self.yolo_lists if is_yolo_class_file(file.name)]
        contents = {file.name: file.path.read_bytes() for file in named}
        return yolo_classes(sorted(contents), contents)


def upload_files(
    client: HairlineClient, dataset_id: str, found: FolderFiles, *, progress: Progress | None = None
) -> FolderUpload:
    """Upload files under their names.

    Call it again after an error or a kill: it goes on.

    Args:
        client: Of the service.
        dataset_id: Where the files go.
        found: From `list_folder`.
        progress: Called after each request, with the bytes dealt with and those of all files.

    Raises:
        HairlineError: The service can't be reached or refuses a whole request.
    """
    there = {item.name: item for item in client.items(dataset_id)}
    total, done = sum(file.size for file in found.files), 0
    outcomes = list(found.unreadable)
    for request in _requests(found.files):
        outcomes += _send(client, dataset_id, request, there)
        done += sum(file.size for file in request)
        if progress is not None:
            progress(done, total)
    kinds = [outcome.outcome for outcome in outcomes]
    rejected = tuple(outcome for outcome in outcomes if outcome.outcome == "rejected")
    return FolderUpload(kinds.count("accepted"), kinds.count("known"), rejected)


def list_folder(folder: Path) -> FolderFiles:
    """Return every file below a folder.

    Raises:
        FileNotFoundError: There is none.
    """
    found: list[LocalFile] = []
    unreadable: list[FileOutcome] = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        try:
            if path.is_file():
                found.append(LocalFile(name, path, path.stat().st_size))
        except OSError as error:
            unreadable.append(_unreadable(name, error.strerror or str(error)))
    if not found and not unreadable:
        raise FileNotFoundError(f"{folder} holds no files")
    lists = [file for file in found if is_yolo_list(file.name)]
    sent = [file for file in found if not is_yolo_list(file.name)]
    # A YOLO file needs its frame, and any label that finds its frame is checked against it.
    sent.sort(key=lambda file: not is_frame(file.name))
    return FolderFiles(tuple(sent), tuple(unreadable), tuple(lists))


def _requests(files: Sequence[LocalFile]) -> Iterator[list[LocalFile]]:
    request: list[LocalFile] = []
    for file in files:
        size = sum(other.size for other in request) + file.size
        if request and (len(request) == _REQUEST_FILES or size > _REQUEST_BYTES):
            yield request
            request = []
        request.append(file)
    if request:
        yield request


def _send(
    client: HairlineClient,
    dataset_id: str,
    files: Sequence[LocalFile],
    there: dict[str, ItemResource],
) -> list[FileOutcome]:
    """Send what the service does not have, and return an outcome for each file."""
    outcomes: list[FileOutcome] = []
    missing: list[tuple[str, Path]] = []
    for file in files:
        try:
            if _is_there(file, there.get(file.name)):
                outcomes.append(FileOutcome(file.name, "known"))
                continue
            file.path.open("rb").close()
        except OSError as error:
            outcomes.append(_unreadable(file.name, error.strerror or str(error)))
            continue
        missing.append((file.name, file.path))
    if not missing:
        return outcomes
    try:
        answer = client.upload(dataset_id, missing)
    except HairlineError as error:
        if "files" not in error.problem:
            raise
        return outcomes + _OUTCOMES.validate_python(error.problem["files"])
    return outcomes + answer.files


def _is_there(file: LocalFile, item: ItemResource | None) -> bool:
    if item is None or not item.is_stored or item.byte_count != file.size:
        return False
    with file.path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() == item.sha256


def _unreadable(name: str, reason: str) -> FileOutcome:
    return FileOutcome(
        name,
        "rejected",
        code="file_unreadable",
        detail=f"The file can't be read: {reason}.",
        hint="Check the disk and the file's permissions.",
    )
