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
from data.errors import DataError, ImageError
from data.images import Pixels
from data.items import Item, SplitName
from data.labels import rasterize
from data.limits import PixelLimits
from data.manifest import Manifest
from data.storage import read_verified

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Frame:
    """One training example.

    Attributes:
        name: The item's.
        pixels: (H, W, C) uint8 or uint16, C-contiguous and writable.
        mask: (H, W, K) uint8 of 0 and 1, one plane a class.
    """

    name: str
    pixels: Pixels
    mask: NDArray[np.uint8]


class FrameDataset(Dataset[Frame]):
    """The frames of one split, in the manifest's order.

    As a map-style dataset it is indexed by ``(epoch, index)`` pairs, so that a sampler decides the
    epoch and persistent workers need no message about it.  Every draw comes from
    ``SeedSequence([seed, epoch, index])``: order, workers and earlier calls change nothing.

    Args:
        manifest: The data-set version.
        root: The folder that the manifest's paths are relative to.
        split: Which part of it.
        seed: Source of crops and variation; not negative.
        augmentation: None leaves frames as they are.
        crop: None keeps whole frames.
        cache_frames: How many decoded frames to keep in memory, per process; the first ones that
            are asked for stay.

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
        cache_frames: int = 0,
    ) -> None:
        self.items: tuple[Item, ...] = manifest.subset(split).items
        self.classes = manifest.classes
        self.channels = 1 if all(item.channels == 1 for item in manifest.items) else 3
        self._bayer = manifest.bayer
        self._root = root
        self._seed = seed
        self._crop = crop
        self._augmentation = None if augmentation is None else Augmentation(augmentation)
        self._cache: dict[int, tuple[Pixels, NDArray[np.uint8]]] = {}
        self._cache_frames = cache_frames
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

    def __getitem__(self, key: tuple[int, int]) -> Frame:
        """Return the frame of an ``(epoch, index)`` pair."""
        epoch, index = key
        return self.frame(index, epoch)

    def frame(self, index: int, epoch: int) -> Frame:
        """Return a frame as it appears in ``epoch``.

        Args:
            index: 0 to len - 1.
            epoch: From 0.

        Raises:
            IndexError: There is no such frame.
            DataError: A file is missing, changed or damaged since the version was frozen.
        """
        if not 0 <= index < len(self.items):
            raise IndexError(f"index {index} of {len(self.items)} frames")
        rng = np.random.default_rng(np.random.SeedSequence([self._seed, epoch, index]))
        pixels, mask = self._load(index)
        if self._crop is not None:
            pixels, mask = crop_window(pixels, mask, self._crop, rng)
        if self._augmentation is not None:
            pixels, mask = self._augmentation.apply(pixels, mask, rng)
        # What leaves may be written to; what the cache holds may not change.
        if not pixels.flags.writeable:
            pixels = pixels.copy()
        if not mask.flags.writeable:
            mask = mask.copy()
        return Frame(self.items[index].name, pixels, mask)

    def _load(self, index: int) -> tuple[Pixels, NDArray[np.uint8]]:
        if index in self._cache:
            return self._cache[index]
        loaded = load_frame(
            self.items[index], self._root, self.classes, self.channels, bayer=self._bayer
        )
        for array in loaded:
            array.flags.writeable = False
        if len(self._cache) < self._cache_frames:
            self._cache[index] = loaded
        return loaded


def load_frame(
    item: Item,
    root: Path,
    classes: tuple[str, ...],
    channels: int,
    *,
    bayer: BayerPattern | None,
) -> tuple[Pixels, NDArray[np.uint8]]:
    """Read one frame and its labels from storage.

    Args:
        item: What to read.
        root: Storage root.
        classes: Order of the mask's planes.
        channels: 1 or 3; a mono frame is replicated to 3.
        bayer: The manifest's; such a frame is demosaiced.

    Returns:
        Pixels (H, W, C) uint8 or uint16 and mask (H, W, K) uint8 of 0 and 1.

    Raises:
        DataError: A file is missing, changed or damaged.
    """
    raw = read_verified(root, item.file, item.sha256)
    # The limits were the import's to check; the digest says that this is the same file.
    size = PixelLimits(item.width * item.height, max(item.width, item.height), 1)
    try:
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
    planes: Any = pixels if pixels.ndim == 3 else pixels[:, :, None]
    if planes.shape[2] != channels:
        planes = np.repeat(planes, channels, axis=2)
    return planes, rasterize(item.labels, item.width, item.height, classes, root)


def crop_window(
    pixels: Pixels, mask: NDArray[np.uint8], crop: CropSpec, rng: np.random.Generator
) -> tuple[Pixels, NDArray[np.uint8]]:
    """Cut a random window, around a labelled pixel with probability ``crop.defect_rate``.

    The labelled pixel is drawn uniformly from all of the frame's, and the window uniformly from
    those that contain it.

    Args:
        pixels: (H, W, C), mirrored at the right and bottom where it is smaller than the window.
        mask: (H, W, K).
        crop: The window.
        rng: Source of every choice.

    Returns:
        Copies of shape (height_px, width_px, C) and (height_px, width_px, K).
    """
    pixels = _extend(pixels, crop.height_px, crop.width_px)
    mask = _extend(mask, crop.height_px, crop.width_px)
    height, width = pixels.shape[:2]
    tops = (0, height - crop.height_px)
    lefts = (0, width - crop.width_px)
    if rng.random() < crop.defect_rate:
        labelled = np.flatnonzero(mask.any(axis=2))
        if labelled.size:
            y, x = divmod(int(labelled[rng.integers(labelled.size)]), width)
            tops = (max(0, y - crop.height_px + 1), min(y, tops[1]))
            lefts = (max(0, x - crop.width_px + 1), min(x, lefts[1]))
    top = int(rng.integers(tops[0], tops[1] + 1))
    left = int(rng.integers(lefts[0], lefts[1] + 1))
    window = (slice(top, top + crop.height_px), slice(left, left + crop.width_px))
    return pixels[window].copy(), mask[window].copy()


def _extend(array: Any, height_px: int, width_px: int) -> Any:
    missing = [(0, max(0, height_px - array.shape[0])), (0, max(0, width_px - array.shape[1]))]
    if missing == [(0, 0), (0, 0)]:
        return array
    # Mirroring keeps the surface's texture, where a black border would look like a defect.
    return np.pad(array, [*missing, (0, 0)], mode="symmetric")
