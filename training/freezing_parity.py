"""The frozen model of a run against the trained network that it was frozen from.

Folding rounds every weight once more.  Most networks' answers move by less than the tolerance then;
those of one that was hardly trained, or that trained wildly, may move further without a fault.  So
where the tolerance is exceeded the network itself is asked again with every weight one unit in its
last place away: its answers are worth no more than what that changes.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from data import Frame
from models import FrozenDetector, FrozenModel
from models.cuda_graphs import exact_convolutions
from training.detection import EvalDetector
from training.errors import ParityError
from training.eval_forward import EvalForward
from training.evaluation import whole_frames
from training.preparation import Prepared

PARITY_FRAMES = 3
# Sums are added up in another order besides: up to 1.4 times the rounding of weights was seen, of a
# detector after two steps.
ROUNDING_FACTOR = 4
# A network whose answers are worth less than so many tolerances is not worth serving.
MOST_TOLERANCES = 100


@dataclass(frozen=True)
class _Difference:
    """How far apart two networks are on one frame.

    Attributes:
        found: Of the frozen model from the trained network.
        rounding: Of the trained network from itself with its weights nudged; None: not asked.
    """

    found: float
    rounding: float | None


def segmentation_parity(
    prepared: Prepared, frozen: FrozenModel, tolerance: float
) -> dict[str, Any]:
    """Compare probabilities on calibration frames.

    Args:
        prepared: Holds the trained network.
        frozen: Made of the same weights.
        tolerance: Of a probability, where the network's own rounding does not move it further.

    Returns:
        ``max_difference``; the ``tolerance`` that was allowed and the ``usual_tolerance``;
        ``rounding``, what one unit in the last place of every weight changes, None where no frame
        exceeded the usual tolerance; ``frames``.

    Raises:
        ParityError: If a probability differs by more.
    """
    forward = EvalForward(
        prepared.network, prepared.preprocessing, prepared.device, prepared.look_tiles
    )

    def compare(frame: Frame) -> _Difference:
        trained = forward.probabilities(frame.pixels)

        def distance(answer: NDArray[np.float32]) -> float:
            return float(np.abs(trained - answer).max())

        return _difference(
            distance(frozen.probabilities(frame.pixels)),
            lambda: distance(forward.probabilities(frame.pixels)),
            prepared.network,
            tolerance,
        )

    with exact_convolutions():
        return _judged([compare(frame) for frame in _frames(prepared)], tolerance, "probabilities")


def detection_parity(
    prepared: Prepared, frozen: FrozenDetector, tolerance: float
) -> dict[str, Any]:
    """Compare every score and box before the weak and the doubled are dropped.

    Boxes count in units of their own side, or of their anchor's or region's if that is larger;
    Faster R-CNN's second stage is asked about the same regions.  Arguments, answer and errors are
    those of `segmentation_parity`.
    """
    forward = EvalDetector(
        prepared.network, prepared.model, prepared.preprocessing, prepared.device
    )

    def compare(frame: Frame) -> _Difference:
        trained = forward.candidates(frame.pixels)
        regions = trained.regions
        return _difference(
            trained.largest_difference(frozen.candidates(frame.pixels, regions)),
            lambda: trained.largest_difference(forward.candidates(frame.pixels, regions)),
            prepared.network,
            tolerance,
        )

    with exact_convolutions():
        return _judged(
            [compare(frame) for frame in _frames(prepared)], tolerance, "scores or boxes"
        )


def told_rounding(parity: dict[str, Any]) -> str | None:
    """Return a sentence about a network that the tolerance was raised for; None for others."""
    if parity["tolerance"] == parity["usual_tolerance"]:
        return None
    return (
        f"rounding every weight once more changes what the network says by up to "
        f"{parity['rounding']:.0e}, so the frozen model was allowed to differ by "
        f"{parity['tolerance']:.0e} instead of {parity['usual_tolerance']:.0e}: it may have been "
        "trained too briefly, or with too large a learning rate"
    )


def _frames(prepared: Prepared) -> Iterator[Frame]:
    return islice(whole_frames(prepared.calibration), PARITY_FRAMES)


def _difference(
    found: float, nudged: Callable[[], float], network: nn.Module, tolerance: float
) -> _Difference:
    if found <= tolerance:
        return _Difference(found, None)
    with nudged_weights(network):
        return _Difference(found, nudged())


def _judged(differences: list[_Difference], tolerance: float, what: str) -> dict[str, Any]:
    """Return what the report says, or raise `ParityError`."""
    # Of NaN the maximum is NaN, which no comparison lets pass.
    largest = float(np.max([each.found for each in differences]))
    roundings = [each.rounding for each in differences if each.rounding is not None]
    rounding = float(np.max(roundings)) if roundings else None
    most = MOST_TOLERANCES * tolerance
    allowed = tolerance
    if rounding is not None and rounding > 0:
        allowed = min(max(tolerance, ROUNDING_FACTOR * rounding), most)
    if not largest <= allowed:
        told = "" if rounding is None else f"; its own rounding changes them by {rounding:.2e}"
        by_rounding = rounding is not None and largest <= ROUNDING_FACTOR * rounding
        raise ParityError(
            "parity_failed",
            f"the frozen model's {what} differ by {largest:.2e} from the trained network's, the "
            f"tolerance is {allowed:.0e}{told}",
            hint="train for longer or with a smaller learning rate, so that rounding does not "
            "decide what the network says"
            if by_rounding
            else "report it with the run's directory; the model must not be served",
        )
    return {
        "max_difference": largest,
        "tolerance": allowed,
        "usual_tolerance": tolerance,
        "rounding": rounding,
        "frames": len(differences),
    }


@contextmanager
def nudged_weights(network: nn.Module) -> Iterator[None]:
    """Move every weight to one of its two neighbours for the block, the same ones each time."""
    signs = torch.Generator().manual_seed(0)
    parameters = list(network.parameters())
    # In the host's memory, since a GPU's is meant for the frame.
    kept = [parameter.detach().to("cpu", copy=True) for parameter in parameters]
    try:
        with torch.no_grad():
            for parameter, weight in zip(parameters, kept, strict=True):
                up = torch.rand(weight.shape, generator=signs) < 0.5
                towards = torch.where(up, torch.inf, -torch.inf)
                parameter.copy_(torch.nextafter(weight, towards.to(weight.dtype)))
        yield
    finally:
        with torch.no_grad():
            for parameter, weight in zip(parameters, kept, strict=True):
                parameter.copy_(weight)
