"""Training a segmentation network: batches of frames with masks, and a look at whole frames."""

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from data import Frame
from models import Preprocessing
from models.tiling import SquareTiles
from training.batches import Batch, collate, with_distances
from training.eval_forward import EvalForward
from training.evaluation import score_histograms
from training.task import Look


class SegmentationTask:
    """How a segmentation network is trained.

    Args:
        preprocessing: The network's.
        classes: In the order of the network's outputs.
        device: Where it runs.
        reach_px: How far the loss looks around labelled pixels; None if it asks for no distances.
        tiles: In which frames are looked at where memory does not hold them whole.
    """

    score_name = "dice"

    def __init__(
        self,
        preprocessing: Preprocessing,
        classes: tuple[str, ...],
        device: torch.device,
        reach_px: float | None = None,
        tiles: SquareTiles | None = None,
    ) -> None:
        self._preprocessing = preprocessing
        self._classes = classes
        self._device = device
        self._reach_px = reach_px
        self._tiles = tiles

    def collate(self, frames: Sequence[Frame]) -> Batch:
        """Stack frames and masks, with their distance maps where the loss asks for them."""
        on_gpu = self._device.type == "cuda"
        batch = collate(frames, self._preprocessing, pin_memory=on_gpu)
        return batch if self._reach_px is None else with_distances(batch, self._reach_px)

    def look(self, network: nn.Module, frames: Iterable[Frame]) -> Look:
        """Return the highest pixel Dice over all thresholds on whole frames."""
        forward = EvalForward(network, self._preprocessing, self._device, self._tiles)
        histograms = score_histograms(forward, frames, self._classes)
        by_class = {name: histogram.best_dice()[0] for name, histogram in histograms.items()}
        known = [score for score in by_class.values() if score is not None]
        return Look(self.score_name, sum(known) / len(known) if known else None, by_class)
