"""The frozen detector: a bundle that looks at one frame of any size and answers with boxes."""

import time

import torch
from torch import Tensor

from models.bundle import Bundle, BundleInfo
from models.detections import (
    Candidates,
    Detections,
    find_boxed_defects,
    frame_candidates,
    frame_detections,
)
from models.preprocessing import Pixels
from models.runtime import FrozenModel, Inspection, resolve_device
from norm import fold_batchnorm


class FrozenDetector:
    """A bundle ready to serve: statistics frozen and folded into the convolutions.

    Its batch normalizations all lie in the feature pyramid, which alone is traced and folded: the
    boxes that come out of the heads depend on ties, which an example's answer may not show.  What
    the heads normalize by groups stays.

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
        assert self.info.model.detection is not None  # The bundle would not have been built.
        self._max_detections = self.info.model.detection.max_detections
        side_px = 2 * self.info.preprocessing.stride_px
        example = torch.zeros(1, self.info.preprocessing.in_channels, side_px, side_px)
        network = bundle.network.eval()
        _, self.fold_report = fold_batchnorm(network.get_submodule("backbone"), example)
        self._network = network.to(self.device).to(memory_format=torch.channels_last)

    def detections(self, pixels: Pixels) -> Detections:
        """Return the boxes of one frame, strongest first, below the operating point too.

        Raises:
            FrameError: If the frame does not suit the model.
        """
        return self._forward(pixels)[0]

    def candidates(self, pixels: Pixels, regions: Tensor | None = None) -> Candidates:
        """Return every score and box on one frame before the weak and the doubled are dropped."""
        return frame_candidates(
            self._network, pixels, self.info.preprocessing, self.device, regions
        )

    def inspect(self, pixels: Pixels) -> Inspection:
        """Look at one frame (H, W) or (H, W, 3), uint8 or uint16, at its native size.

        Raises:
            FrameError: If the frame does not suit the model.
        """
        begin = time.perf_counter()
        detections, notes = self._forward(pixels)
        modelled = time.perf_counter()
        defects, left_out = find_boxed_defects(
            detections,
            (pixels.shape[0], pixels.shape[1]),
            self.info.classes,
            self.info.operating_point,
            max_detections=self._max_detections,
        )
        done = time.perf_counter()
        return Inspection(
            verdict="NG" if defects else "OK",
            defects=defects,
            probabilities=None,
            notes=(*notes, *left_out),
            timings_ms={
                "model": 1000 * (modelled - begin),
                "postprocess": 1000 * (done - modelled),
            },
        )

    def _forward(self, pixels: Pixels) -> tuple[Detections, list[str]]:
        return frame_detections(
            self._network, pixels, self.info.model, self.info.preprocessing, self.device
        )


def freeze_bundle(bundle: Bundle, device: str = "auto") -> FrozenModel | FrozenDetector:
    """Return the bundle ready to serve, by its task; its network belongs to the result.

    Args:
        bundle: From `load_bundle`.
        device: ``auto`` takes a GPU when there is one.
    """
    kind = FrozenDetector if bundle.info.task == "detection" else FrozenModel
    return kind(bundle, device)
