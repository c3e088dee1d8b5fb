"""Frames and labels at a smaller scale, for the comparison with full resolution alone.

Frames are resized by the lines that serving uses (`models.resize_pixels`).  Masks go the way that
this module states, since a rule that takes the majority of each pixel's area loses a defect of one
pixel in silence; boxes keep their sides as fractions of a pixel.  Only training sees resized
labels: a model is always judged on native ones.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from data import Frame, Item, rasterize
from data.instances import VisibleBox
from models import resize_pixels, resized_size
from training.config import RunConfig
from training.detection_preparation import MeasuredBoxes
from training.evenly_spread import evenly_spread
from training.events import EventLog

# OpenCV sums areas in float32.
_HALF = 0.5 - 1e-4
_NEIGHBOURS = np.ones((3, 3), np.uint8)
# A frame of 5 megapixels takes a tenth of a second a class; more frames would hardly move a share.
MOST_COUNTED = 512


@dataclass(frozen=True)
class LabelFate:
    """What became of the labelled defects of one class.

    Attributes:
        labelled: Connected regions of labelled pixels in native frames; of a detector, boxes.
        vanished: Those without a labelled pixel of their own once resized; of a detector, boxes
            that are narrower than a pixel then.
        merged: Those that run together with another one of their class once resized; boxes never
            do.
    """

    labelled: int = 0
    vanished: int = 0
    merged: int = 0

    def __add__(self, other: "LabelFate") -> "LabelFate":
        return LabelFate(
            self.labelled + other.labelled,
            self.vanished + other.vanished,
            self.merged + other.merged,
        )


@dataclass(frozen=True)
class ResizedLabels:
    """What resizing does to the labels that training learns from.

    Attributes:
        factor: Sides of the resized frame, as a share of its own.
        frames_counted: Defective training frames that were looked at.
        frames_defective: All defective training frames.
        labels: What was counted.
        by_class: What became of each class's defects in the frames looked at.
    """

    factor: float
    frames_counted: int
    frames_defective: int
    by_class: dict[str, LabelFate]
    labels: Literal["regions", "boxes"] = "regions"

    def as_dict(self) -> dict[str, Any]:
        """Return plain dictionaries, ready for JSON."""
        return asdict(self)


def resize_mask(mask: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return a mask (H, W, K) of 0 and 1 at a smaller ``size`` (h, w), one plane a class.

    A resized pixel is labelled if at least half of its area is.  Where that leaves a resized pixel
    that the label touches without a labelled neighbour (a scratch of one pixel, a speck), every
    resized pixel that the label touches there is labelled.  So large defects keep their size, thin
    ones their length, and a defect can only vanish beside another one of its class.
    """
    if size == mask.shape[:2]:
        return mask
    planes = [
        _resize_plane(np.ascontiguousarray(mask[:, :, index]), size)
        for index in range(mask.shape[2])
    ]
    return np.stack(planes, axis=2)


def _resize_plane(plane: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    if not plane.any():
        return np.zeros(size, np.uint8)
    covered: Any = cv2.resize(
        plane.astype(np.float32), (size[1], size[0]), interpolation=cv2.INTER_AREA
    )
    touched = (covered > 0).astype(np.uint8)
    core = (covered >= _HALF).astype(np.uint8)
    thin = touched & ~cv2.dilate(core, _NEIGHBOURS) & 1
    # One step back towards the core, so that a scratch that leaves a stain stays one with it.
    resized: NDArray[np.uint8] = core | (touched & cv2.dilate(thin, _NEIGHBOURS))
    return resized


def resize_frame(frame: Frame, factor: float) -> Frame:
    """Return a frame as training at this factor sees it; the frame itself at factor 1.

    Its boxes are those of the resized pixels that they touch, for who draws them: training itself
    takes fractions of a pixel.
    """
    height, width = frame.mask.shape[:2]
    size = resized_size(height, width, factor)
    if size == (height, width):
        return frame
    boxes = frame.boxes
    if boxes is not None:
        boxes = tuple(_touched(box, size[1] / width, size[0] / height) for box in boxes)
    pixels = resize_pixels(frame.pixels, size)
    return Frame(frame.name, pixels, resize_mask(frame.mask, size), boxes)


def _touched(box: VisibleBox, across: float, down: float) -> VisibleBox:
    left, top = math.floor(box.x * across), math.floor(box.y * down)
    right = math.ceil((box.x + box.width) * across)
    bottom = math.ceil((box.y + box.height) * down)
    return replace(box, x=left, y=top, width=right - left, height=bottom - top)


def label_fate(plane: NDArray[np.uint8], resized: NDArray[np.uint8]) -> LabelFate:
    """Count what became of the defects of one class in one frame.

    Args:
        plane: (H, W) of 0 and 1.
        resized: (h, w) of 0 and 1, by `resize_mask`.
    """
    count, regions = cv2.connectedComponents(plane, connectivity=8)
    _, resized_regions = cv2.connectedComponents(resized, connectivity=8)
    rows, columns = np.nonzero(plane)
    cells = resized_regions[
        ((rows + 0.5) * resized.shape[0] / plane.shape[0]).astype(np.int64),
        ((columns + 0.5) * resized.shape[1] / plane.shape[1]).astype(np.int64),
    ]
    # The number of the resized region that each native one came to; 0 is none.
    became = np.zeros(count, np.int64)
    np.maximum.at(became, regions[rows, columns], cells)
    survivors = became[1:][became[1:] > 0]
    return LabelFate(
        labelled=count - 1,
        vanished=count - 1 - len(survivors),
        merged=len(survivors) - len(np.unique(survivors)),
    )


def count_box_fates(
    measured: MeasuredBoxes, classes: tuple[str, ...], factor: float
) -> ResizedLabels:
    """Count what becomes of a detector's labelled boxes.

    Args:
        measured: Of the training frames.
        classes: The manifest's.
        factor: Below 1.
    """
    by_class = {name: LabelFate() for name in classes}
    for box in measured.boxes:
        vanished = min(box.width, box.height) * factor < 1
        by_class[box.class_name] += LabelFate(labelled=1, vanished=int(vanished))
    return ResizedLabels(factor, measured.frames, measured.frames_defective, by_class, "boxes")


def count_label_fates(
    items: Sequence[Item], root: Path, classes: tuple[str, ...], factor: float
) -> ResizedLabels:
    """Count over training frames, at most `MOST_COUNTED` of them, evenly spread.

    Args:
        items: The training frames.
        root: Storage root.
        classes: The manifest's.
        factor: Below 1.

    Raises:
        DataError: A mask is missing, changed or damaged.
    """
    defective = [item for item in items if item.is_defective]
    places = evenly_spread(len(defective), MOST_COUNTED)
    by_class = {name: LabelFate() for name in classes}
    for place in places:
        item = defective[place]
        mask = rasterize(item.labels, item.width, item.height, classes, root)
        resized = resize_mask(mask, resized_size(item.height, item.width, factor))
        for index, name in enumerate(classes):
            plane = np.ascontiguousarray(mask[:, :, index])
            by_class[name] += label_fate(plane, np.ascontiguousarray(resized[:, :, index]))
    return ResizedLabels(factor, len(places), len(defective), by_class)


def tell_resizing(
    items: Sequence[Item],
    classes: tuple[str, ...],
    config: RunConfig,
    events: EventLog,
    measured: MeasuredBoxes | None,
) -> ResizedLabels | None:
    """Say that frames are resized and what that does to the labels; None at native size.

    Args:
        items: The training frames.
        classes: The manifest's.
        config: The run's.
        events: Told of it.
        measured: What a detector learns from; None of a segmentation network.
    """
    factor = config.resize_factor
    if factor == 1:
        return None
    events.warning(
        "frames_resized",
        f"frames are resized by {factor:g} for the network, as resolution.mode asks; the model is "
        "judged on native frames and says so with each answer",
    )
    if measured is None:
        counted = count_label_fates(items, config.data.root, classes, factor)
        what = "defects vanish beside others"
    else:
        counted = count_box_fates(measured, classes, factor)
        what = "boxes are narrower than a pixel"
    events.write("resizing", **counted.as_dict())
    for name, fate in counted.by_class.items():
        if fate.vanished:
            events.warning(
                "labels_vanish",
                f"{name}: {fate.vanished} of {fate.labelled} labelled {what} when resized by "
                f"{factor:g} (in {counted.frames_counted} of {counted.frames_defective} defective "
                "training frames)",
            )
    return counted
