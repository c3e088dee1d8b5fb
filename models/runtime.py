"""The frozen model: a bundle that looks at one frame of any size and says OK or NG."""

import time
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from models.bundle import Bundle, BundleInfo
from models.defects import Defect, Verdict, find_defects
from models.preprocessing import Pixels, Preprocessing, frame_to_tensor, pad_to_multiple
from models.registry import example_input
from norm import fold_batchnorm


@dataclass(frozen=True)
class Inspection:
    """What a model says of one frame.

    Attributes:
        verdict: ``NG`` if there is a defect, else ``OK``.
        defects: Strongest first.
        probabilities: (K, H, W) float32, at the frame's own size.
        notes: What was converted or left out.
        timings_ms: ``model`` and ``postprocess``.
    """

    verdict: Verdict
    defects: tuple[Defect, ...]
    probabilities: NDArray[np.float32]
    notes: tuple[str, ...]
    timings_ms: dict[str, float]


class FrozenModel:
    """A bundle ready to serve: statistics frozen and folded into the convolutions.

    Not safe for several threads at once; one thread owns a device.

    Args:
        bundle: Its network is folded in place and belongs to this object from now on.
        device: ``auto`` takes a GPU when there is one.

    Attributes:
        info: The bundle's.
        device: The one in use.
        fold_report: Which normalization layers were folded, and which were not and why.
    """

    def __init__(self, bundle: Bundle, device: str = "auto") -> None:
        self.info: BundleInfo = bundle.info
        self.device = resolve_device(device)
        example = example_input(self.info.model, self.info.preprocessing.in_channels)
        network, self.fold_report = fold_batchnorm(bundle.network.eval(), example)
        self._network = network.to(self.device).to(memory_format=torch.channels_last)

    def probabilities(self, pixels: Pixels) -> NDArray[np.float32]:
        """Return the probability of each class (K, H, W) at each pixel of a frame.

        Raises:
            FrameError: If the frame does not suit the model.
        """
        return self._forward(pixels)[0]

    def inspect(self, pixels: Pixels) -> Inspection:
        """Look at one frame (H, W) or (H, W, 3), uint8 or uint16, at its native size.

        Raises:
            FrameError: If the frame does not suit the model.
        """
        begin = time.perf_counter()
        probabilities, notes = self._forward(pixels)
        modelled = time.perf_counter()
        defects, left_out = find_defects(
            probabilities, self.info.classes, self.info.operating_point
        )
        done = time.perf_counter()
        return Inspection(
            verdict="NG" if defects else "OK",
            defects=defects,
            probabilities=probabilities,
            notes=(*notes, *left_out),
            timings_ms={
                "model": 1000 * (modelled - begin),
                "postprocess": 1000 * (done - modelled),
            },
        )

    def _forward(self, pixels: Pixels) -> tuple[NDArray[np.float32], list[str]]:
        return frame_probabilities(self._network, pixels, self.info.preprocessing, self.device)


@torch.inference_mode()
def frame_probabilities(
    network: nn.Module, pixels: Pixels, preprocessing: Preprocessing, device: torch.device
) -> tuple[NDArray[np.float32], list[str]]:
    """Ask a network in eval mode about one whole frame; training and serving share these lines.

    Args:
        network: On ``device``, in eval mode.
        pixels: (H, W) or (H, W, C), uint8 or uint16.
        preprocessing: The network's.
        device: Where it runs.

    Returns:
        Probabilities (K, H, W) float32 at the frame's own size, and notes on what was converted.

    Raises:
        FrameError: If the frame does not suit the model.
    """
    tensor, notes = frame_to_tensor(pixels, preprocessing)
    height, width = tensor.shape[-2:]
    batch = pad_to_multiple(tensor[None], preprocessing.stride_px)
    batch = batch.to(device, memory_format=torch.channels_last)
    logits = network(batch)[0, :, :height, :width]
    return logits.float().sigmoid().contiguous().cpu().numpy(), notes


def resolve_device(device: str) -> torch.device:
    """Return the device meant by ``auto``, ``cpu``, ``cuda`` or ``cuda:1``."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)
