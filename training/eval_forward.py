"""The network as it is being trained, asked about whole frames."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from models import Pixels, Preprocessing, frame_probabilities
from models.runtime import look_whole
from models.tiling import SquareTiles
from training.errors import diverged


class EvalForward:
    """The training-side network in eval mode, asked one whole frame at a time.

    Args:
        network: On ``device``.
        preprocessing: The network's.
        device: Where it runs.
        tiles: In which frames are looked at where memory does not hold them whole.
    """

    def __init__(
        self,
        network: nn.Module,
        preprocessing: Preprocessing,
        device: torch.device,
        tiles: SquareTiles | None = None,
    ) -> None:
        self._network = network
        self._preprocessing = preprocessing
        self._device = device
        self._tiles_for = tiles or look_whole

    def probabilities(self, pixels: Pixels) -> NDArray[np.float32]:
        """Return (K, H, W) float32; the network's mode is restored.

        Raises:
            DivergedError: A probability is no number.
        """
        was_training = self._network.training
        self._network.eval()
        try:
            answer, _ = frame_probabilities(
                self._network, pixels, self._preprocessing, self._device, self._tiles_for
            )
        finally:
            self._network.train(was_training)
        if not np.isfinite(answer).all():
            raise diverged("probabilities", "in eval mode")
        return answer
