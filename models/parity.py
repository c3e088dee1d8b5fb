"""The parity gate: an engine whose verdicts are not the network's own is refused.

On every golden frame the verdict and the set of defect classes must be those of the reference
engine, and on real ones the strongest probability of each class must lie within a tolerance of the
reference's.
The tolerance catches what no frame happens to show as another verdict: an export with other
weights, exchanged outputs or another mean is far from the network everywhere.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from models.bundle import BundleInfo
from models.defects import Verdict, find_defects
from models.engines import Engine, EngineName
from models.errors import OutputError
from models.preprocessing import Pixels, Preprocessing
from models.runtime import engine_probabilities

# How far the strongest probability of a class in a frame may be from the reference's.  Float32
# differs by the order of sums alone.  Half precision has 8 (bf16) or 11 (fp16) bits a value, which
# reaches some hundredths through a network's depth, where the sigmoid is steepest; 8-bit integers
# reach twice as much.  Whether it matters is decided by the verdicts; this only tells another
# network from the same one.
TOLERANCE: dict[EngineName, float] = {
    "torch-fp32": 1e-4,
    "onnxruntime-fp32": 1e-3,
    "openvino-fp32": 1e-3,
    "torch-fp16": 0.05,
    "torch-bf16": 0.05,
    "openvino-bf16": 0.05,
    "openvino-int8": 0.1,
    "openvino-int8-mixed": 0.1,
}
_LISTED_FLIPS = 20
_EXTREME_SIDE_PX = 1000


@dataclass(frozen=True)
class GoldenFrame:
    """A frame on which engines are compared."""

    name: str
    pixels: Pixels


@dataclass(frozen=True)
class FrameAnswer:
    """What an engine says of a frame, as far as it is compared.

    Attributes:
        verdict: None where the probabilities were no numbers.
        found: Classes of its defects, in the model's order.
        peaks: The strongest probability of each class.
    """

    verdict: Verdict | None
    found: tuple[str, ...]
    peaks: tuple[float, ...]

    def __str__(self) -> str:
        verdict = self.verdict or "no verdict"
        return f"{verdict} ({', '.join(self.found)})" if self.found else verdict


class Flip(BaseModel):
    """A golden frame that an engine judges differently."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    frame: str
    reference: str
    engine: str


class ParityOutcome(BaseModel):
    """What the golden frames say of an engine.

    Attributes:
        frames: How many were compared.
        flips: How many of them were judged differently.
        listed: The first of those.
        largest_difference: Of a class's strongest probability in a real frame; 1 where one was no
            number.
        largest_at: The frame where it was.
        tolerance: What it may be.
        smallest_margin: The least distance of a strongest probability from its class's threshold,
            by the reference; how near the frames came to the other verdict.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    frames: int
    flips: int
    listed: tuple[Flip, ...]
    largest_difference: float
    largest_at: str | None
    tolerance: float
    smallest_margin: float | None

    @property
    def refusal(self) -> str | None:
        """Why the engine may not serve the model; None if it may."""
        if not self.frames:
            return "no frame was compared"
        if self.flips:
            first = self.listed[0]
            return (
                f"{self.flips} of {self.frames} golden frames are judged differently; first "
                f"{first.frame}: {first.engine} instead of {first.reference}"
            )
        if self.largest_difference > self.tolerance:
            return (
                f"a score differs by {self.largest_difference:.2g} at {self.largest_at}, the "
                f"tolerance is {self.tolerance:g}"
            )
        return None


def look(engine: Engine, pixels: Pixels, info: BundleInfo) -> FrameAnswer:
    """Ask an engine about a frame; defects are found by the lines that serve.

    Raises:
        FrameError: The frame does not suit the model.
        EngineError: The engine failed.
    """
    ((probabilities, _),) = engine_probabilities(engine, [pixels], info.preprocessing)
    peaks = tuple(float(plane.max()) for plane in probabilities)
    try:
        defects, _ = find_defects(probabilities, info.classes, info.operating_point)
    except OutputError:
        return FrameAnswer(None, (), peaks)
    names = {defect.class_name for defect in defects}
    found = tuple(name for name in info.classes if name in names)
    return FrameAnswer("NG" if defects else "OK", found, peaks)


class ParityTally:
    """Counts where an engine's answers leave the reference's."""

    def __init__(self, engine: EngineName, info: BundleInfo) -> None:
        self._tolerance = TOLERANCE[engine]
        self._thresholds = [info.operating_point.classes[name].threshold for name in info.classes]
        self._frames = 0
        self._flips: list[Flip] = []
        self._largest = 0.0
        self._largest_at: str | None = None
        self._margin = math.inf

    def add(
        self, frame: str, reference: FrameAnswer, answer: FrameAnswer, *, is_drawn: bool = False
    ) -> None:
        """Compare what both say of a frame; of a drawn extreme the verdicts alone.

        Ranges of 8 bits are those of real frames, and scores beyond them end where the range does.
        """
        self._frames += 1
        same = (reference.verdict, reference.found) == (answer.verdict, answer.found)
        if not same or answer.verdict is None:
            self._flips.append(Flip(frame=frame, reference=str(reference), engine=str(answer)))
        if is_drawn:
            return
        for ours, its, threshold in zip(
            reference.peaks, answer.peaks, self._thresholds, strict=True
        ):
            difference = abs(ours - its)
            difference = difference if math.isfinite(difference) else 1.0
            if difference > self._largest:
                self._largest, self._largest_at = difference, frame
            self._margin = min(self._margin, abs(ours - threshold))

    def outcome(self) -> ParityOutcome:
        """Return what was found."""
        return ParityOutcome(
            frames=self._frames,
            flips=len(self._flips),
            listed=tuple(self._flips[:_LISTED_FLIPS]),
            largest_difference=self._largest,
            largest_at=self._largest_at,
            tolerance=self._tolerance,
            smallest_margin=self._margin if math.isfinite(self._margin) else None,
        )


def distance_to_thresholds(answer: FrameAnswer, info: BundleInfo) -> float:
    """Return how near a frame is to another verdict; the nearest are the golden ones."""
    thresholds = [info.operating_point.classes[name].threshold for name in info.classes]
    distances = [
        abs(peak - threshold) for peak, threshold in zip(answer.peaks, thresholds, strict=True)
    ]
    return min(distances, default=math.inf)


def synthetic_extremes(size: tuple[int, int], preprocessing: Preprocessing) -> list[GoldenFrame]:
    """Return frames that no camera delivers on a good day, of ``size`` (H, W) or smaller.

    Black, white, noise, another size, and a pattern that changes with each pixel: the ends of the
    range that 8 bits are spread over.  They say nothing of large frames that smaller ones don't.
    """
    height, width = (min(side, _EXTREME_SIDE_PX) for side in size)
    dtype = np.uint8 if preprocessing.bit_depth == 8 else np.uint16
    top = int(np.iinfo(dtype).max)
    shape = (height, width, preprocessing.in_channels)
    rng = np.random.default_rng(0)
    rows, columns = np.indices((height, width))
    checks = np.where((rows + columns) % 2 == 0, 0, top).astype(dtype)[:, :, None]
    odd = (height // 2 + 1, width // 2 + 1, preprocessing.in_channels)
    frames: tuple[tuple[str, Any], ...] = (
        ("black", np.zeros(shape, dtype)),
        ("white", np.full(shape, top, dtype)),
        ("noise", rng.integers(0, top, shape, dtype=dtype, endpoint=True)),
        ("checks", np.ascontiguousarray(np.broadcast_to(checks, shape))),
        ("odd size", rng.integers(0, top, odd, dtype=dtype, endpoint=True)),
    )
    return [GoldenFrame(f"synthetic: {name}", pixels) for name, pixels in frames]
