"""Area under the per-region overlap curve (AUPRO), streamed.

Bergmann et al., *The MVTec Anomaly Detection Dataset*, IJCV 2021, section 5.2: the overlap of each
labelled region with the pixels above a threshold, averaged over regions so that a small defect
weighs as much as a large one, against the rate of false positive pixels, up to a rate of 0.3.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.score_curves import BIN_COUNT

FALSE_POSITIVE_LIMIT = 0.3


@dataclass
class RegionOverlap:
    """How much of the labelled regions lies in which bin of scores.

    Attributes:
        covered: (BIN_COUNT,) float64; each region spreads a weight of 1 over its pixels' bins.
        regions: How many there are.
    """

    covered: NDArray[np.float64] = field(default_factory=lambda: np.zeros(BIN_COUNT, np.float64))
    regions: int = 0

    def add(
        self,
        labelled_bins: NDArray[np.int32],
        region_of_pixel: NDArray[np.int64],
        areas_px: NDArray[np.int64],
    ) -> None:
        """Count the labelled regions of one frame.

        Args:
            labelled_bins: (N,) bin of each labelled pixel's score.
            region_of_pixel: (N,) the region it belongs to, from 0.
            areas_px: (R,) of the regions.
        """
        if len(areas_px):
            weights = 1.0 / areas_px[region_of_pixel]
            self.covered += np.bincount(labelled_bins, weights=weights, minlength=BIN_COUNT)
            self.regions += len(areas_px)

    def score(self, unlabelled: NDArray[np.int64]) -> dict[str, Any]:
        """Return the area up to the limit, divided by the limit: 1 is perfect.

        Between two bins the curve is a straight line (the trapezoid rule), as in the reference.

        Args:
            unlabelled: (BIN_COUNT,) pixels outside of labelled regions, by bin.

        Returns:
            ``value``, ``regions``, and ``resolution_error``: by how much the binning can be off.
            The value is None, with a ``reason``, where regions or other pixels are missing.
        """
        negatives = int(unlabelled.sum())
        if self.regions == 0 or negatives == 0:
            reason = "nothing is labelled" if self.regions == 0 else "everything is labelled"
            return {"value": None, "regions": self.regions, "reason": reason}
        false_rate = np.concatenate([[0.0], np.cumsum(unlabelled[::-1]) / negatives])
        overlap = np.concatenate([[0.0], np.cumsum(self.covered[::-1]) / self.regions])
        inside = false_rate <= FALSE_POSITIVE_LIMIT
        # The curve is cut by a straight line through the bin in which the limit lies.
        at_limit = float(np.interp(FALSE_POSITIVE_LIMIT, false_rate, overlap))
        x = np.append(false_rate[inside], FALSE_POSITIVE_LIMIT)
        y = np.append(overlap[inside], max(at_limit, float(overlap[inside][-1])))
        area = float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2))
        # Both coordinates rise, so the true curve stays between the heights of two points; in the
        # bin of the limit it may rise as far as that bin's end.
        middle = (y[1:] + y[:-1]) / 2
        highest = np.append(y[1:-1], overlap[int(inside.sum())])
        error = float(np.sum(np.diff(x) * np.maximum(highest - middle, middle - y[:-1])))
        return {
            "value": min(area / FALSE_POSITIVE_LIMIT, 1.0),
            "regions": self.regions,
            "resolution_error": error / FALSE_POSITIVE_LIMIT,
            "reason": None,
        }
