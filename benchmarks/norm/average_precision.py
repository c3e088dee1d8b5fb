"""Pixel average precision from a histogram, so that no frame's pixels need to be kept."""

import torch
from torch import Tensor

BINS = 2000


class ScoreHistogram:
    """Counts of defective and other pixels by predicted probability, in `BINS` equal bins."""

    def __init__(self) -> None:
        self.defective = torch.zeros(BINS, dtype=torch.float64)
        self.other = torch.zeros(BINS, dtype=torch.float64)

    def add(self, probabilities: Tensor, masks: Tensor) -> None:
        """Count pixels.

        Args:
            probabilities: In [0, 1], any shape, on the CPU.
            masks: 1 where defective, the same shape.
        """
        bins = (probabilities * BINS).long().clamp_(0, BINS - 1).flatten()
        is_defective = masks.flatten().bool()
        self.defective += torch.bincount(bins[is_defective], minlength=BINS)
        self.other += torch.bincount(bins[~is_defective], minlength=BINS)

    def average_precision(self) -> float:
        """Return the sum over thresholds of precision times the recall gained; ties share a bin.

        Raises:
            ValueError: No pixel was defective.
        """
        hits = self.defective.flip(0)
        if hits.sum() == 0:
            raise ValueError("average precision needs at least one defective pixel, got none")
        found = hits.cumsum(0)
        named = found + self.other.flip(0).cumsum(0)
        precision = found / named.clamp(min=1)
        return float((precision * hits).sum() / found[-1])
