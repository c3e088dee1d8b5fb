"""The health report as one HTML file that needs nothing beside it: no network, no script."""

import base64
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from data import DataError, Item
from data.display import class_colour
from data.health import Finding
from service.datasets.health import VersionHealth
from service.datasets.previews import PreviewKind, fit, render
from service.errors import StorageError
from service.html_pages import page_template
from service.storage import Storage

if TYPE_CHECKING:
    from collections.abc import Mapping

_THUMBNAIL_SIDE_PX = 320
# Decoding takes tens of milliseconds a frame, and a page is looked through, not searched.
_MOST_PICTURED = 4


@dataclass(frozen=True)
class _Thumbnail:
    """A frame on the page.

    Attributes:
        name: The frame's.
        split: Where it lies.
        data_url: The picture; None where it can't be read.
    """

    name: str
    split: str
    data_url: str | None


@dataclass(frozen=True)
class _Row:
    """A finding on the page.

    Attributes:
        finding: What is wrong.
        pictured: Its first examples' text and thumbnails.
        others: The text of its other examples.
        is_cut: Whether more are concerned than are listed.
    """

    finding: Finding
    pictured: tuple[tuple[str, tuple[_Thumbnail, ...]], ...]
    others: tuple[str, ...]
    is_cut: bool


def render_page(health: VersionHealth, storage: Storage) -> str:
    """Return the report as HTML, with thumbnails of the examples in it."""
    thumbnails = _Thumbnails(health, storage)
    rows = [_row(each, thumbnails) for each in health.findings]
    total = len(health.manifest.items)
    return page_template("service.datasets", "health_page.html.jinja").render(
        health=health,
        statistics=health.manifest.statistics(),
        rows=rows,
        colours=[class_colour(index) for index in range(len(health.manifest.classes))],
        errors=sum(row.finding.severity == "error" for row in rows),
        total=total,
        percent=round(100 * health.measured / max(total, 1)),
    )


def _row(each: Finding, thumbnails: "_Thumbnails") -> _Row:
    pictured: list[tuple[str, tuple[_Thumbnail, ...]]] = []
    others: list[str] = []
    for text, names in zip(each.examples, each.frames, strict=True):
        if names and len(pictured) < _MOST_PICTURED:
            pictured.append((text, tuple(thumbnails.of(name) for name in names)))
        else:
            others.append(text)
    return _Row(each, tuple(pictured), tuple(others), each.is_cut)


class _Thumbnails:
    """Draws each frame once, however often it is named."""

    def __init__(self, health: VersionHealth, storage: Storage) -> None:
        self._items: Mapping[str, Item] = {item.name: item for item in health.manifest.items}
        self._classes = health.manifest.classes
        self._storage = storage
        self._bayer = health.manifest.bayer
        self._drawn: dict[str, _Thumbnail] = {}

    def of(self, name: str) -> _Thumbnail:
        if name not in self._drawn:
            item = self._items[name]
            self._drawn[name] = _Thumbnail(name, item.split or "unassigned", self._draw(item))
        return self._drawn[name]

    def _draw(self, item: Item) -> str | None:
        # A frame whose mask is damaged is still worth a look.
        kinds: tuple[PreviewKind, ...] = ("overlay", "image")
        for kind in kinds:
            with suppress(DataError, StorageError):
                return self._data_url(item, kind)
        return None

    def _data_url(self, item: Item, kind: PreviewKind) -> str:
        preview = render(
            self._storage.read_blob(item.sha256),
            name=item.name,
            bayer=self._bayer,
            frame_size=(item.width, item.height),
            labels=item.labels,
            classes=self._classes,
            mask_root=self._storage.root,
            kind=kind,
            size=fit(item.width, item.height, _THUMBNAIL_SIDE_PX),
            picture_format="jpeg",
        )
        return f"data:{preview.media_type};base64,{base64.b64encode(preview.content).decode()}"
