"""The frozen model: a bundle that looks at one frame of any size and says OK or NG."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from models.bundle import Bundle, BundleInfo
from models.defects import Defect, Verdict, find_defects
from models.errors import OutputError
from models.preprocessing import Pixels, Preprocessing, frame_to_tensor, pad_to_multiple
from models.registry import example_input
from norm import fold_batchnorm


@dataclass(frozen=True)
class Inspection:
    """What a model says of one frame.

    Attributes:
        verdict: ``NG`` if there is a defect, else ``OK``.
        defects: Strongest first.
        probabilities: (K, H, W) float32, at the frame's own size; None of a detector, which has
            boxes alone.
        notes: What was converted or left out.
        timings_ms: ``model`` and ``postprocess``.
    """

    verdict: Verdict
    defects: tuple[Defect, ...]
    probabilities: NDArray[np.float32] | None
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
        """Look at one frame (H, W) or (H, W, 3), uint8 or uint16; regions are in its own pixels.

        Raises:
            FrameError: If the frame does not suit the model.
        """
        begin = time.perf_counter()
        probabilities, notes = self._forward(pixels)
        return self._judged(probabilities, notes, 1000 * (time.perf_counter() - begin))

    def inspect_together(self, frames: Sequence[Pixels]) -> list[Inspection | OutputError]:
        """Look at frames of one size and depth in one forward.

        Probabilities differ from those of each frame alone by rounding, since libraries sum in
        another order for another batch: by less than 1e-5.

        Args:
            frames: Each as for `inspect`, all of one shape and dtype.

        Returns:
            For each frame what the model says, or why it says nothing of this one.  The time of the
            forward is told with each.

        Raises:
            FrameError: If the frames do not suit the model.
        """
        begin = time.perf_counter()
        preprocessing = self.info.preprocessing
        answers = probabilities_together(self._network, frames, preprocessing, self.device)
        model_ms = 1000 * (time.perf_counter() - begin)
        outcomes: list[Inspection | OutputError] = []
        for probabilities, notes in answers:
            try:
                outcomes.append(self._judged(probabilities, notes, model_ms))
            except OutputError as error:
                outcomes.append(error)
        return outcomes

    def _judged(
        self, probabilities: NDArray[np.float32], notes: list[str], model_ms: float
    ) -> Inspection:
        begin = time.perf_counter()
        defects, left_out = find_defects(
            probabilities, self.info.classes, self.info.operating_point
        )
        return Inspection(
            verdict="NG" if defects else "OK",
            defects=defects,
            probabilities=probabilities,
            notes=(*notes, *left_out),
            timings_ms={"model": model_ms, "postprocess": 1000 * (time.perf_counter() - begin)},
        )

    def _forward(self, pixels: Pixels) -> tuple[NDArray[np.float32], list[str]]:
        return frame_probabilities(self._network, pixels, self.info.preprocessing, self.device)


def frame_probabilities(
    network: nn.Module, pixels: Pixels, preprocessing: Preprocessing, device: torch.device
) -> tuple[NDArray[np.float32], list[str]]:
    """Ask a network in eval mode about one whole frame; training and serving share these lines.

    A network of resized frames sees the frame resized; its probabilities are interpolated
    bilinearly to the frame's own size, so that whoever reads them deals with native pixels alone.

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
    return probabilities_together(network, [pixels], preprocessing, device)[0]


@torch.inference_mode()
def probabilities_together(
    network: nn.Module,
    frames: Sequence[Pixels],
    preprocessing: Preprocessing,
    device: torch.device,
) -> list[tuple[NDArray[np.float32], list[str]]]:
    """Ask a network about frames of one shape and dtype in one forward, see `frame_probabilities`.

    Returns:
        For each frame its probabilities (K, H, W) float32, and notes on what was converted.

    Raises:
        FrameError: If the frames do not suit the model.
    """
    tensors, notes = zip(
        *(frame_to_tensor(pixels, preprocessing) for pixels in frames), strict=True
    )
    height, width = tensors[0].shape[-2:]
    # A single frame is not copied.
    stacked = tensors[0][None] if len(tensors) == 1 else torch.stack(tensors)
    batch = pad_to_multiple(stacked, preprocessing.stride_px)
    batch = batch.to(device, memory_format=torch.channels_last)
    answer = network(batch)[:, :, :height, :width].float().sigmoid()
    native: tuple[int, int] = (frames[0].shape[0], frames[0].shape[1])
    if (height, width) != native:
        answer = F.interpolate(answer, native, mode="bilinear", align_corners=False)
    return list(zip((plane.contiguous().cpu().numpy() for plane in answer), notes, strict=True))


def resolve_device(device: str) -> torch.device:
    """Return the device meant by ``auto``, ``cpu``, ``cuda`` or ``cuda:1``."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)
