"""Which sizes of defects are found: recall in bins that are the data's own quantiles, streamed."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.certificate import exact_interval

# Sizes are told apart to an eighth of a doubling, 9 %.  2**26 px is more than a frame has.
BINS_A_DOUBLING = 8
_SIZE_BINS = 26 * BINS_A_DOUBLING + 1
# A quarter of a hundred defects still has an interval that says something.
MOST_BINS = 4
# The curve against size may be rougher bin by bin.
MOST_CURVE_BINS = 8
# With fewer defects than two bins of these all sizes share one bin.
LEAST_IN_BIN = 10


@dataclass
class SizeCounts:
    """How many defects of each size there are and how many of them are found.

    Attributes:
        labelled: (bins,) int64.
        found: (bins,) int64.
        smallest_px: Exact.
        largest_px: Exact.
    """

    labelled: NDArray[np.int64] = field(default_factory=lambda: np.zeros(_SIZE_BINS, np.int64))
    found: NDArray[np.int64] = field(default_factory=lambda: np.zeros(_SIZE_BINS, np.int64))
    smallest_px: float = float("inf")
    largest_px: float = 0.0

    def add(self, sizes_px: NDArray[Any], found: NDArray[np.bool_]) -> None:
        """Count defects by size; both (R,), sizes at least 1."""
        if len(sizes_px) == 0:
            return
        steps = np.floor(np.log2(np.maximum(sizes_px, 1.0)) * BINS_A_DOUBLING + 1e-9)
        bins = np.minimum(steps.astype(np.int64), _SIZE_BINS - 1)
        self.labelled += np.bincount(bins, minlength=_SIZE_BINS)
        self.found += np.bincount(bins[found], minlength=_SIZE_BINS)
        self.smallest_px = min(self.smallest_px, float(sizes_px.min()))
        self.largest_px = max(self.largest_px, float(sizes_px.max()))

    def recall_by_size(self, most_bins: int = MOST_BINS) -> list[dict[str, Any]]:
        """Return recall in bins of about equally many defects, smallest first.

        There are as many bins as leave `LEAST_IN_BIN` defects for each, at least one and at most
        ``most_bins``.  Defects of one size share a bin, so that bins may be fewer and unequal.

        Returns:
            ``from_px`` and ``below_px`` of each bin (the last one's is the largest size and belongs
            to it), and ``recall`` with its interval; empty without a defect.
        """
        total = int(self.labelled.sum())
        if total == 0:
            return []
        count = max(1, min(most_bins, total // LEAST_IN_BIN))
        up_to = np.cumsum(self.labelled)
        # The bin of the first defect at or beyond each quantile begins the next one.
        quantiles = [total * part / count for part in range(1, count)]
        starts = {int(np.searchsorted(up_to, quantile, side="right")) for quantile in quantiles}
        first = int(np.flatnonzero(self.labelled)[0])
        edges = sorted({first, *(start for start in starts if start > first)})
        return [self._bin(start, end) for start, end in zip(edges, [*edges[1:], None], strict=True)]

    def _bin(self, start: int, end: int | None) -> dict[str, Any]:
        is_first = not self.labelled[:start].any()
        return {
            "from_px": round(self.smallest_px if is_first else edge_px(start), 2),
            "below_px": round(self.largest_px if end is None else edge_px(end), 2),
            "recall": exact_interval(
                int(self.found[start:end].sum()), int(self.labelled[start:end].sum())
            ),
        }


def edge_px(index: int) -> float:
    """Return the smallest size of a bin."""
    return float(2 ** (index / BINS_A_DOUBLING))
