"""Frames of one split as training sees them, each fully determined by (seed, epoch, index)."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from data.augmentation import Augmentation, AugmentationSpec, CropSpec
from data.bayer import BayerPattern, decode_frame
from data.copy_paste import paste_defect
from data.errors import DataError, ImageError
from data.frame_cache import FrameCache
from data.images import Pixels
from data.instances import Instances, VisibleBox, draw_instances, visible_boxes
from data.items import Item, SplitName
from data.labels import rasterize
from data.limits import PixelLimits
from data.manifest import Manifest
from data.sampling import Draw
from data.storage import read_verified
from data.window import cut_window

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Frame:
    """One training example.

    Attributes:
        name: The item's.
        pixels: (H, W, C) uint8 or uint16, C-contiguous and writable.
        mask: (H, W, K) uint8 of 0 and 1, one plane a class.
        boxes: Of the defects as far as they are to be seen; None where they were not asked for.
    """

    name: str
    pixels: Pixels
    mask: NDArray[np.uint8]
    boxes: tuple[VisibleBox, ...] | None = None


@dataclass(frozen=True)
class BoxSpec:
    """What boxes of varied frames are for detection.

    Attributes:
        min_visible_share: Of a defect's pixels; a piece that shows less of it has no box.
    """

    min_visible_share: float = 0.25


class FrameDataset(Dataset[Frame]):
    """The frames of one split, in the manifest's order.

    As a map-style dataset it is indexed by ``(epoch, index)`` pairs or ``(epoch, Draw)``, so that a
    sampler decides the epoch and persistent workers need no message about it.  Every choice comes
    from ``SeedSequence([seed, epoch, index, repeat])``: order, workers and earlier calls change
    nothing.  Several threads may use one object.

    Args:
        manifest: The data-set version.
        root: The folder that the manifest's paths are relative to.
        split: Which part of it; pasted defects come from the same part.
        seed: Source of crops and variation; not negative.
        augmentation: None leaves frames as they are.
        crop: None keeps whole frames.
        cache: Where decoded frames are kept; None decodes them each time.
        boxes: Asks for the boxes of the defects in each frame.

    Attributes:
        items: The split's items; ``index`` counts them.
        channels: 1 if every frame of the manifest is mono, else 3.
        padded_names: Frames smaller than the crop, which are extended by mirroring at their right
            and bottom edges; each window of them has the crop's size.
    """

    def __init__(
        self,
        manifest: Manifest,
        root: Path,
        split: SplitName,
        *,
        seed: int,
        augmentation: AugmentationSpec | None = None,
        crop: CropSpec | None = None,
        cache: FrameCache | None = None,
        boxes: BoxSpec | None = None,
    ) -> None:
        self.items: tuple[Item, ...] = manifest.subset(split).items
        self.classes = manifest.classes
        self.channels = 1 if all(item.channels == 1 for item in manifest.items) else 3
        self._bayer = manifest.bayer
        self._root = root
        self._seed = seed
        self._crop = crop
        self._augmentation = None if augmentation is None else Augmentation(augmentation)
        self._cache = cache
        self._boxes = boxes
        self._sources = [index for index, item in enumerate(self.items) if item.is_defective]
        self.padded_names = tuple(
            item.name
            for item in self.items
            if crop is not None and (item.height < crop.height_px or item.width < crop.width_px)
        )
        if self.padded_names:
            logger.warning(
                "%d of %d frames are smaller than the crop and are padded, the first is %s",
                len(self.padded_names),
                len(self.items),
                self.padded_names[0],
            )

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, key: tuple[int, int | Draw]) -> Frame:
        """Return the frame of an ``(epoch, index)`` or ``(epoch, draw)`` pair."""
        epoch, draw = key
        return self.show(draw, epoch) if isinstance(draw, Draw) else self.frame(draw, epoch)

    def frame(self, index: int, epoch: int) -> Frame:
        """Return a frame as it first appears in ``epoch``, see `show`."""
        return self.show(Draw(index), epoch)

    def show(self, draw: Draw, epoch: int) -> Frame:
        """Return one showing of a frame.

        Args:
            draw: Which frame (0 to len - 1), for which time, and what it is to show.
            epoch: From 0.

        Raises:
            IndexError: There is no such frame.
            DataError: A file is missing, changed or damaged since the version was frozen.
        """
        if not 0 <= draw.index < len(self.items):
            raise IndexError(f"index {draw.index} of {len(self.items)} frames")
        # A seed of zeros at its end is the seed without them: the first showing has three numbers.
        entropy = [self._seed, epoch, draw.index, draw.repeat]
        rng = np.random.default_rng(np.random.SeedSequence(entropy))
        spec = None if self._augmentation is None else self._augmentation.spec
        pixels, mask = self._load(draw.index)
        instances = self._draw_instances(draw.index)
        labels: list[NDArray[Any]] = [mask] if instances is None else [mask, instances.layers]
        pixels, labels = cut_window(
            pixels,
            labels,
            self._crop,
            rng,
            wish=draw.wish,
            rotation_deg=0.0 if spec is None else spec.rotation_deg,
        )
        if instances is not None:
            instances = instances.with_layers(labels[1])
        paste_rate = 0.0 if spec is None or draw.wish == "clean" else spec.paste_rate
        if paste_rate and rng.random() < paste_rate:
            pixels, labels, instances = self._paste(draw.index, pixels, labels[0], instances, rng)
        if self._augmentation is not None:
            pixels, labels = self._augmentation.apply(pixels, labels, rng)
        return self._frame(draw.index, pixels, labels, instances)

    def _frame(
        self,
        index: int,
        pixels: Pixels,
        labels: list[NDArray[Any]],
        instances: Instances | None,
    ) -> Frame:
        # What leaves may be written to; what the cache holds may not change.
        pixels = pixels if pixels.flags.writeable else pixels.copy()
        boxes = None
        if instances is not None and self._boxes is not None:
            boxes = visible_boxes(
                instances.with_layers(labels[1]), min_visible_share=self._boxes.min_visible_share
            )
        return Frame(self.items[index].name, pixels, labels[0], boxes)

    def _draw_instances(self, index: int) -> Instances | None:
        if self._boxes is None:
            return None
        item = self.items[index]
        return draw_instances(item.labels, item.width, item.height, self.classes, self._root)

    def _paste(
        self,
        index: int,
        pixels: Pixels,
        mask: NDArray[np.uint8],
        instances: Instances | None,
        rng: np.random.Generator,
    ) -> tuple[Pixels, list[NDArray[Any]], Instances | None]:
        """Paste a defect of another frame into a window that was cut."""
        others = [
            other
            for other in self._sources
            if other != index and self.items[other].bit_depth == 8 * pixels.dtype.itemsize
        ]
        if others:
            source_pixels, source_mask = self._load(others[int(rng.integers(len(others)))])
            before = mask
            pixels, mask, covered = paste_defect(pixels, mask, source_pixels, source_mask, rng)
            if covered is not None and instances is not None:
                added = (mask != before)[covered].any(axis=0)
                name = self.classes[int(np.flatnonzero(added)[0])]
                instances = instances.with_defect(covered, name)
        return pixels, [mask] if instances is None else [mask, instances.layers], instances

    def _load(self, index: int) -> tuple[Pixels, NDArray[np.uint8]]:
        item = self.items[index]
        return load_frame(
            item, self._root, self.classes, self.channels, bayer=self._bayer, cache=self._cache
        )


def load_frame(
    item: Item,
    root: Path,
    classes: tuple[str, ...],
    channels: int,
    *,
    bayer: BayerPattern | None,
    cache: FrameCache | None = None,
) -> tuple[Pixels, NDArray[np.uint8]]:
    """Read one frame and its labels from storage.

    Args:
        item: What to read.
        root: Storage root.
        classes: Order of the mask's planes.
        channels: 1 or 3; a mono frame is replicated to 3.
        bayer: The manifest's; such a frame is demosaiced.
        cache: Asked for the decoded picture first, and given it when it had to be decoded.

    Returns:
        Pixels (H, W, C) uint8 or uint16, which may be read-only, and mask (H, W, K) uint8 of 0 and
        1.

    Raises:
        DataError: A file is missing, changed or damaged.
    """
    pixels = None if cache is None else cache.read(item, bayer)
    if pixels is None:
        pixels = _decode(item, root, bayer)
        if cache is not None:
            cache.add(item, pixels, bayer)
    planes: Any = pixels if pixels.ndim == 3 else pixels[:, :, None]
    if planes.shape[2] != channels:
        planes = np.repeat(planes, channels, axis=2)
    return planes, rasterize(item.labels, item.width, item.height, classes, root)


def _decode(item: Item, root: Path, bayer: BayerPattern | None) -> Pixels:
    # The limits were the import's to check; the digest says that this is the same file.
    size = PixelLimits(item.width * item.height, max(item.width, item.height), 1)
    try:
        raw = read_verified(root, item.file, item.sha256)
        pixels = decode_frame(raw, name=item.file, bayer=bayer, limits=size).pixels
    except DataError as error:
        raise error.renamed(item.name) from error
    if pixels.shape[:2] != (item.height, item.width):
        raise ImageError(
            "image_size_mismatch",
            f"The picture has {pixels.shape[1]}x{pixels.shape[0]} px, the manifest says "
            f"{item.width}x{item.height} px.",
            file=item.name,
            hint="Freeze the data-set version again.",
        )
    return pixels
