"""What changed from one data-set version to another."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from data.items import Item, SplitName
from data.labels import MaskLabels
from data.manifest import Manifest


@dataclass(frozen=True)
class Move:
    """A frame that is in another split.

    Attributes:
        name: The frame's, in the newer version.
        before: Its split in the older version.
        after: Its split in the newer version.
    """

    name: str
    before: SplitName | None
    after: SplitName | None


@dataclass(frozen=True)
class ManifestDiff:
    """The differences, each list sorted by name.

    A frame is known by its picture: under another name it is renamed, not added and removed.

    Attributes:
        added: Frames that only the newer version has.
        removed: Frames that only the older version has.
        renamed: Old and new names of frames whose picture is the same.
        relabelled: Frames whose labels differ, by their names in the newer version.
        moved: Frames in another split. One that moved from test or calibration to training, or
            back, makes scores of models of the two versions incomparable.
        demosaiced_otherwise: Frames that both versions have and read under different Bayer
            patterns: all of them or none.
        classes_added: Classes that only the newer version has.
        classes_removed: Classes that only the older version has.
    """

    added: tuple[str, ...]
    removed: tuple[str, ...]
    renamed: tuple[tuple[str, str], ...]
    relabelled: tuple[str, ...]
    moved: tuple[Move, ...]
    demosaiced_otherwise: tuple[str, ...]
    classes_added: tuple[str, ...]
    classes_removed: tuple[str, ...]

    @property
    def is_empty(self) -> bool:
        """Whether nothing changed but perhaps the seed or the order of classes."""
        return self == ManifestDiff((), (), (), (), (), (), (), ())


def diff_manifests(older: Manifest, newer: Manifest) -> ManifestDiff:
    """Compare two versions, of one data set or of two."""
    before = {item.sha256: item for item in older.items}
    after = {item.sha256: item for item in newer.items}
    common = sorted(
        ((before[digest], after[digest]) for digest in before.keys() & after.keys()),
        key=lambda pair: pair[1].name,
    )
    return ManifestDiff(
        added=_names(after[digest] for digest in after.keys() - before.keys()),
        removed=_names(before[digest] for digest in before.keys() - after.keys()),
        renamed=tuple((old.name, new.name) for old, new in common if old.name != new.name),
        relabelled=tuple(new.name for old, new in common if _said(old, older) != _said(new, newer)),
        moved=tuple(
            Move(new.name, old.split, new.split) for old, new in common if old.split != new.split
        ),
        demosaiced_otherwise=tuple(new.name for _, new in common if older.bayer != newer.bayer),
        classes_added=tuple(sorted(set(newer.classes) - set(older.classes))),
        classes_removed=tuple(sorted(set(older.classes) - set(newer.classes))),
    )


def _names(items: Iterable[Item]) -> tuple[str, ...]:
    return tuple(sorted(item.name for item in items))


def _said(item: Item, manifest: Manifest) -> Any:
    """Return what the labels say; a mask's values mean other classes in another order of them."""
    labels = item.labels
    if not isinstance(labels, MaskLabels):
        return labels
    return labels.sha256, tuple(manifest.classes[value - 1] for value in labels.values)
