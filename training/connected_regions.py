"""The connected regions of a map as lists of pixels, found without looking at its empty parts."""

from dataclasses import dataclass
from typing import Self

import cv2
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Regions:
    """The connected regions of a map (H, W), in the order of their first pixels.

    Attributes:
        pixels: (N,) places of the map's pixels when it is flattened.
        region_of_pixel: (N,) the region each belongs to, from 0.
        areas_px: (R,) number of pixels.
        boxes: (R, 4) x, y, width, height.
    """

    pixels: NDArray[np.int64]
    region_of_pixel: NDArray[np.int64]
    areas_px: NDArray[np.int64]
    boxes: NDArray[np.int64]

    def peaks(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the highest score within each region, (R,), of a map (H, W)."""
        highest = np.zeros(len(self.areas_px), np.float32)
        np.maximum.at(highest, self.region_of_pixel, scores.ravel()[self.pixels])
        return highest

    def short_sides_px(self, width: int) -> NDArray[np.float64]:
        """Return the shorter side of each region, (R,), see `short_side_px`.

        Args:
            width: Of the map.
        """
        order = np.argsort(self.region_of_pixel, kind="stable")
        ends = np.cumsum(self.areas_px)[:-1]
        each = np.split(self.pixels[order], ends) if len(self.areas_px) else []
        return np.array([short_side_px(*np.divmod(pixels, width)) for pixels in each], np.float64)

    def keep(self, wanted: NDArray[np.bool_]) -> Self:
        """Return some of the regions; ``wanted`` is (R,)."""
        if wanted.all():
            return self
        stays = wanted[self.region_of_pixel]
        numbers = np.cumsum(wanted) - 1
        return type(self)(
            pixels=self.pixels[stays],
            region_of_pixel=numbers[self.region_of_pixel[stays]],
            areas_px=self.areas_px[wanted],
            boxes=self.boxes[wanted],
        )

    def draw(self, shape: tuple[int, ...]) -> NDArray[np.bool_]:
        """Return the map (H, W) of the regions."""
        drawn = np.zeros(shape, np.bool_)
        drawn.ravel()[self.pixels] = True
        return drawn


def find_regions(plane: NDArray[np.bool_]) -> Regions:
    """Return the connected regions of a map (H, W)."""
    rows, columns = occupied(plane)
    small = plane[np.ix_(rows, columns)]
    if small.size == 0:
        nothing = np.zeros(0, np.int64)
        return Regions(nothing, nothing, nothing, np.zeros((0, 4), np.int64))
    _, ids, stats, _ = cv2.connectedComponentsWithStats(small.view(np.uint8), connectivity=8)
    y, x = np.nonzero(small)
    boxes = stats[1:, :4].astype(np.int64)
    # Within a region no row and no column was left out, so that only its corner moves.
    boxes[:, 0] = columns[boxes[:, 0]]
    boxes[:, 1] = rows[boxes[:, 1]]
    return Regions(
        pixels=rows[y] * plane.shape[1] + columns[x],
        region_of_pixel=ids[y, x].astype(np.int64) - 1,
        areas_px=stats[1:, cv2.CC_STAT_AREA].astype(np.int64),
        boxes=boxes,
    )


def occupied(plane: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows and columns that hold a pixel, and one beyond each stretch of them.

    Without the others, regions keep their pixels and stay apart: between two stretches of rows an
    empty one remains.
    """
    return _stretches(np.any(plane, axis=1)), _stretches(np.any(plane, axis=0))


def _stretches(holds: NDArray[np.bool_]) -> NDArray[np.int64]:
    separates = np.zeros_like(holds)
    separates[1:] = holds[:-1]
    return np.flatnonzero(holds | separates)


def short_side_px(y: NDArray[np.int64], x: NDArray[np.int64]) -> float:
    """Return the shorter side of the rectangle of least area around pixels.

    The rectangle is around the pixels' centres and may be turned; one pixel is added, so that a
    line one pixel wide measures 1 in whatever direction it runs.

    Args:
        y: (N,) rows.
        x: (N,) columns.
    """
    # Close to the origin float32 has digits to spare.
    points = np.stack([x - x.min(), y - y.min()], axis=1).astype(np.float32)
    _, sides, _ = cv2.minAreaRect(points)
    return float(min(sides)) + 1.0
