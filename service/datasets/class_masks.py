"""An archive's masks of one class each, kept until all of a frame's are there, then merged.

An archive lists them class by class and a tar file can be read forwards only, so all of them wait
in one file.  It has no name: a killed worker leaves nothing of it.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import IO, Self

from data.archive import ArchiveMember
from data.class_masks import ClassMaskFile, mask_part_refused, merge_class_masks
from data.errors import DataError, LayoutError
from data.layout import SampleKey
from data.masks import encode_mask
from data.recognition import Layout
from service.datasets.incoming import IncomingFile, ReadCount, read_limited
from service.datasets.upload_conflicts import rejected
from service.datasets.uploads import Uploads
from service.errors import FileOutcome
from service.settings import Settings
from service.storage import Storage, disk_errors

# Of one name the first is taken, and an unsafe one is nobody's mask.
_APART = frozenset({"duplicate_member", "unsafe_name"})


@dataclass(frozen=True)
class _Waiting:
    """A mask in the spool file, or why it could not be read."""

    name: str
    class_name: str
    offset: int = 0
    byte_count: int = 0
    problem: DataError | None = None


@dataclass(frozen=True)
class FrameMasks:
    """A frame's masks in the archive's order."""

    key: str
    files: list[_Waiting] = field(default_factory=list)


class ClassMaskSpool:
    """Keeps masks of one class until they are merged.

    Args:
        storage: On whose disk they wait.
        settings: Say how large a file may be.
        layout: Says which files are such masks; in any layout but ``class_masks`` none is.
        read: Counts what is read of them.
    """

    def __init__(
        self, storage: Storage, settings: Settings, layout: Layout, read: ReadCount
    ) -> None:
        self._read = read
        self._storage = storage
        self._limit = settings.max_file_bytes
        self._masks = layout.class_masks
        self._frames: dict[str, FrameMasks] = {}
        with disk_errors(storage.spool_dir):
            self._file: IO[bytes] = tempfile.TemporaryFile(dir=storage.spool_dir)  # noqa: SIM115 - closed by __exit__.

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def take(self, member: ArchiveMember) -> bool:
        """Keep a member if it is a mask of one class; False if it is not.

        Raises:
            StorageError: The disk is full or fails.
        """
        sample = self._sample(member)
        if sample is None or sample.class_name is None:
            return False
        frame = self._frames.setdefault(sample.key, FrameMasks(sample.key))
        try:
            raw = read_limited(IncomingFile(member.name, member.open), self._limit, self._read)
        except DataError as error:
            problem = error.renamed(member.name)
            frame.files.append(_Waiting(member.name, sample.class_name, problem=problem))
            return True
        with disk_errors(self._storage.spool_dir):
            offset = self._file.seek(0, 2)
            self._file.write(raw)
        frame.files.append(_Waiting(member.name, sample.class_name, offset, len(raw)))
        return True

    def frames(self) -> list[FrameMasks]:
        """Return the frames that have masks, sorted by key."""
        return [self._frames[key] for key in sorted(self._frames)]

    def accept(self, uploads: Uploads, frame: FrameMasks) -> tuple[FileOutcome, ...]:
        """Merge a frame's masks, accept the result, and return what became of each file.

        All are taken in or none: what is left of a label would pass for all of it.

        Raises:
            StorageError: The disk is full or fails.
        """
        assert self._masks is not None  # There would be no such frames.
        files = [
            ClassMaskFile(mask.name, mask.class_name, self._reader(mask)) for mask in frame.files
        ]
        try:
            merged = merge_class_masks(files, classes=self._masks.classes)
        except DataError as error:
            return _refused(frame.files, error)
        name = frame.files[0].name
        name += f" and {len(files) - 1} more" if len(files) > 1 else ""
        outcome = uploads.accept_mask(name, frame.key, encode_mask(merged))
        return tuple(replace(outcome, file=file.name) for file in files)

    def _sample(self, member: ArchiveMember) -> SampleKey | None:
        apart = member.problem is not None and member.problem.code in _APART
        if self._masks is None or apart:
            return None
        try:
            return self._masks.sample(member.name)
        except LayoutError:
            return None

    def _reader(self, mask: _Waiting) -> Callable[[], bytes]:
        def read() -> bytes:
            if mask.problem is not None:
                raise mask.problem
            with disk_errors(self._storage.spool_dir):
                self._file.seek(mask.offset)
                return self._file.read(mask.byte_count)

        return read


def _refused(files: Sequence[_Waiting], error: DataError) -> tuple[FileOutcome, ...]:
    at_fault = error.file or files[0].name
    return tuple(
        rejected(
            file.name, error if file.name == at_fault else mask_part_refused(file.name, at_fault)
        )
        for file in files
    )
