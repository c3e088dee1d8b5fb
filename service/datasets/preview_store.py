"""Previews of a data set's frames: found by what they show, drawn once, kept on disk."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from sqlalchemy.orm import Session, sessionmaker

from data.bayer import BayerPattern
from data.labels import GoodFrame, Labels
from service.database.tables import Label
from service.datasets.labels import label_classes, load_labels
from service.datasets.picture_cache import PictureCache
from service.datasets.previews import Preview, PreviewFormat, PreviewKind, fit, render
from service.datasets.repository import get_dataset, get_item, get_label
from service.errors import NotFound
from service.storage import Storage

# Part of each preview's digest: raise it with any change to what `render` draws.
_DRAWING = 1


@dataclass(frozen=True)
class PlannedPreview:
    """All that determines a preview, and what to call it.

    Attributes:
        frame_sha256: The frame's content.
        label_sha256: The label file's; empty for the bare frame.
        classes: The data set's declared classes, which say what numbers in labels mean and choose
            the colours; None if it declares none.
        bayer: The data set's, which says how the frame is read; None for a mask.
        kind: What is drawn.
        width: Of the frame, px.
        height: Of the frame, px.
        size: (width, height) of the preview.
        picture_format: Of the file.
        name: The frame's; not part of the digest.
        label_id: The label's row; not part of the digest.
    """

    frame_sha256: str
    label_sha256: str
    classes: Sequence[str] | None
    bayer: BayerPattern | None
    kind: PreviewKind
    width: int
    height: int
    size: tuple[int, int]
    picture_format: PreviewFormat
    name: str
    label_id: str | None

    @property
    def digest(self) -> str:
        """SHA-256 of what determines the picture, as hex."""
        parts = asdict(self) | {"name": None, "label_id": None, "drawing": _DRAWING}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class PreviewStore:
    """Plans, keeps and draws previews; every method blocks, so call it in a thread.

    Args:
        reads: Makes reading sessions.
        storage: Holds frames and masks.
        cache: Holds what was drawn before.
    """

    def __init__(self, reads: sessionmaker[Session], storage: Storage, cache: PictureCache) -> None:
        self._reads = reads
        self._storage = storage
        self._cache = cache

    def plan(
        self,
        dataset_id: str,
        item_id: str,
        *,
        kind: PreviewKind,
        max_side_px: int | None,
        picture_format: PreviewFormat,
    ) -> PlannedPreview:
        """Look up what a preview will show; no file is opened.

        Raises:
            NotFound: There is no such frame, or it has no label to draw.
        """
        with self._reads() as session:
            item = get_item(session, dataset_id, item_id)
            dataset = get_dataset(session, dataset_id)
            label = None if kind == "image" else get_label(session, item)
        return PlannedPreview(
            frame_sha256=item.sha256,
            label_sha256="" if label is None else label.sha256,
            classes=None if label is None else dataset.classes,
            bayer=None if kind == "mask" else dataset.bayer,
            kind=kind,
            width=item.width,
            height=item.height,
            size=fit(item.width, item.height, max_side_px),
            picture_format=picture_format,
            name=item.name,
            label_id=None if label is None else label.id,
        )

    def find(self, planned: PlannedPreview) -> Preview | None:
        """Return the preview if it was drawn before."""
        content = self._cache.get(planned.digest)
        return None if content is None else Preview(content, planned.picture_format)

    def draw(self, planned: PlannedPreview) -> Preview:
        """Draw the preview, unless another has drawn it meanwhile, and keep it.

        Raises:
            NotFound: The label was deleted meanwhile.
            DataError: The stored frame or mask is damaged.
            StorageError: The stored frame is gone.
        """
        drawn = self.find(planned)
        if drawn is not None:
            return drawn
        labels = self._labels(planned)
        preview = render(
            # A mask is drawn from its labels alone.
            b"" if planned.kind == "mask" else self._storage.read_blob(planned.frame_sha256),
            name=planned.name,
            bayer=planned.bayer,
            frame_size=(planned.width, planned.height),
            labels=labels,
            classes=label_classes(labels, planned.classes),
            mask_root=self._storage.root,
            kind=planned.kind,
            size=planned.size,
            picture_format=planned.picture_format,
        )
        self._cache.put(planned.digest, preview.content)
        return preview

    def _labels(self, planned: PlannedPreview) -> Labels:
        if planned.label_id is None:
            return GoodFrame()
        with self._reads() as session:
            label = session.get(Label, planned.label_id)
            if label is None:
                raise NotFound(
                    "label_not_found",
                    f"the label of {planned.name} was deleted meanwhile",
                    file=planned.name,
                    hint="Upload a mask or an annotation file whose name pairs with the frame's.",
                )
            return load_labels(label.content)
