"""The frozen model: a bundle that looks at one frame of any size and says OK or NG."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from models.bundle import Bundle, BundleInfo
from models.cuda_graphs import release_cached_memory
from models.defects import BLOCK_PX, Defect, Verdict, find_defects
from models.engines import REFERENCE_ENGINE, Engine, EngineName, TorchEngine
from models.errors import EngineError, OutputError
from models.preprocessing import Pixels, Preprocessing, model_pixels, pad_pixels
from models.registry import example_input
from models.tiling import Tile, Tiling, bytes_per_px, measure_tiling, tiled_probabilities
from norm import FoldReport, fold_batchnorm

logger = logging.getLogger(__name__)

TilesFor = Callable[[tuple[int, int], int], list[Tile] | None]


def look_whole(_size: tuple[int, int], _count: int) -> None:
    """Look at frames whole, whatever their size."""


# Of what a frame would take that did not fit: a model, its graphs and a training leave less.
_LESS_MEMORY = 0.25
_LONGEST_WARMING_S = 30.0


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
        engine: What ran the network.
    """

    verdict: Verdict
    defects: tuple[Defect, ...]
    probabilities: NDArray[np.float32] | None
    notes: tuple[str, ...]
    timings_ms: dict[str, float]
    engine: EngineName = REFERENCE_ENGINE


@dataclass(frozen=True)
class FrameProbabilities:
    """What an engine says of one frame.

    Attributes:
        probabilities: (K, H, W) float32 at the frame's own size, which may be a view of the padded
            ones.
        notes: What was converted.
        peaks: As `find_defects` takes them; None where no device has found them.
    """

    probabilities: NDArray[np.float32]
    notes: list[str]
    peaks: NDArray[np.float32] | None = None


class FrozenModel:
    """A bundle ready to serve: statistics frozen and folded into the convolutions.

    Not safe for several threads at once; one thread owns a device.  `use` alone may be called by
    another.

    Args:
        bundle: Its network is folded in place and belongs to this object from now on.
        device: ``auto`` takes a GPU when there is one.

    Attributes:
        info: The bundle's.
        device: The one in use.
        fold_report: Which normalization layers were folded, and which were not and why.
        network: The folded network, float32, on the device.
        tiles_for: Decides on tiles where it is set, whatever memory there is.
        memory_bytes: What one forward may hold; a frame that would take more is looked at in tiles
            with borders as wide as the network sees, and the answer says so. None sets no bound.
    """

    def __init__(self, bundle: Bundle, device: str = "auto") -> None:
        self.info: BundleInfo = bundle.info
        self.device = resolve_device(device)
        network, self.fold_report = fold_bundle(bundle)
        self.network = network.to(self.device).to(memory_format=torch.channels_last)
        self.reference = TorchEngine(self.network, self.info.preprocessing, self.device)
        # Engine and notes change together, and a frame reads them once.
        self._in_use: tuple[Engine, tuple[str, ...]] = (self.reference, ())
        self.memory_bytes: float | None = None
        self.tiles_for: TilesFor | None = None

    @property
    def engine(self) -> Engine:
        """What runs the network: eager torch unless `use` named another."""
        return self._in_use[0]

    def use(self, engine: Engine, notes: tuple[str, ...] = ()) -> None:
        """Let another engine run the network from the next frame on.

        Args:
            engine: Of the same network; whoever calls this has proven that its verdicts are.
            notes: Are said with each frame.
        """
        self._in_use = (engine, notes)

    def warm_up(self, engine: Engine, pixels: Pixels, count: int) -> None:
        """Get an engine ready that is to be used, for ``count`` frames at a time of these pixels.

        Raises:
            EngineError: The engine failed.
        """
        warm_up(engine, pixels, self.info.preprocessing, count, self._tiles)

    def probabilities(self, pixels: Pixels) -> NDArray[np.float32]:
        """Return the probability of each class (K, H, W) at each pixel of a frame.

        Raises:
            FrameError: If the frame does not suit the model.
        """
        ((probabilities, _),) = engine_probabilities(
            self.engine, [pixels], self.info.preprocessing, self._tiles
        )
        return probabilities

    def inspect(self, pixels: Pixels) -> Inspection:
        """Look at one frame (H, W) or (H, W, 3), uint8 or uint16; regions are in its own pixels.

        Raises:
            FrameError: If the frame does not suit the model.
            OutputError: The model's answer is no answer.
        """
        (outcome,) = self.inspect_together([pixels])
        if isinstance(outcome, OutputError):
            raise outcome
        return outcome

    def inspect_together(self, frames: Sequence[Pixels]) -> list[Inspection | OutputError]:
        """Look at frames of one size and depth in one forward.

        An engine that fails is replaced by the reference for good, and each answer says so.

        Probabilities differ from those of each frame alone by rounding, since libraries sum in
        another order for another batch: by less than 1e-5 in float32.

        Args:
            frames: Each as for `inspect`, all of one shape and dtype.

        Returns:
            For each frame what the model says, or why it says nothing of this one.  The time of the
            forward is told with each.

        Raises:
            FrameError: If the frames do not suit the model.
        """
        engine, said = self._in_use
        begin = time.perf_counter()
        try:
            answers = self._ask(engine, frames)
        except EngineError as error:
            if engine is self.reference:
                raise
            # The line goes on, more slowly and saying so.
            logger.exception("%s: %s serves from now on", error.code, self.reference.name)
            said = (f"{self.reference.name} answers, because {error.detail}",)
            engine = self.reference
            self.use(engine, said)
            answers = self._ask(engine, frames)
        model_ms = 1000 * (time.perf_counter() - begin)
        outcomes: list[Inspection | OutputError] = []
        for answer in answers:
            try:
                outcomes.append(self._judged(answer, said, model_ms, engine.name))
            except OutputError as error:
                outcomes.append(error)
        return outcomes

    def _ask(self, engine: Engine, frames: Sequence[Pixels]) -> list[FrameProbabilities]:
        """Ask an engine; frames that its device has no memory for are looked at in tiles."""
        try:
            return engine_answers(engine, frames, self.info.preprocessing, self._tiles)
        except torch.OutOfMemoryError:
            if self._tiling is None:
                raise
            # What was free when the model was loaded may have gone to a training beside it.
            release_cached_memory(self.device)
            whole_px = sum(frame.shape[0] * frame.shape[1] for frame in frames)
            whole_bytes = self._bytes_per_px * whole_px
            self.memory_bytes = min(self.memory_bytes or whole_bytes, whole_bytes) * _LESS_MEMORY
            logger.warning("no memory for a frame: tiles of %d bytes", self.memory_bytes)
        return engine_answers(engine, frames, self.info.preprocessing, self._tiles)

    def _tiles(self, size: tuple[int, int], count: int) -> list[Tile] | None:
        """Return the tiles that a padded frame is looked at in; None if it is looked at whole."""
        if self.tiles_for is not None:
            return self.tiles_for(size, count)
        if self.memory_bytes is None:
            return None
        memory_bytes = self.memory_bytes / count
        if size[0] * size[1] * self._bytes_per_px <= memory_bytes or self._tiling is None:
            return None
        return self._tiling.tiles(size, memory_bytes)

    @cached_property
    def _bytes_per_px(self) -> float:
        preprocessing = self.info.preprocessing
        return bytes_per_px(self.network, preprocessing.in_channels, preprocessing.stride_px)

    @cached_property
    def _tiling(self) -> Tiling | None:
        preprocessing = self.info.preprocessing
        return measure_tiling(self.network, preprocessing.in_channels, preprocessing.stride_px)

    def _judged(
        self,
        answer: FrameProbabilities,
        said: tuple[str, ...],
        model_ms: float,
        engine: EngineName,
    ) -> Inspection:
        begin = time.perf_counter()
        defects, left_out = find_defects(
            answer.probabilities, self.info.classes, self.info.operating_point, answer.peaks
        )
        return Inspection(
            verdict="NG" if defects else "OK",
            defects=defects,
            probabilities=answer.probabilities,
            notes=(*answer.notes, *said, *left_out),
            timings_ms={"model": model_ms, "postprocess": 1000 * (time.perf_counter() - begin)},
            engine=engine,
        )


def fold_bundle(bundle: Bundle) -> tuple[nn.Module, FoldReport]:
    """Fold a segmentation bundle's statistics into its convolutions, in place; see `norm`."""
    example = example_input(bundle.info.model, bundle.info.preprocessing.in_channels)
    return fold_batchnorm(bundle.network.eval(), example)


def frame_probabilities(
    network: nn.Module,
    pixels: Pixels,
    preprocessing: Preprocessing,
    device: torch.device,
    tiles_for: TilesFor = look_whole,
) -> tuple[NDArray[np.float32], list[str]]:
    """Ask a network in eval mode about one whole frame; training and serving share these lines.

    Args:
        network: On ``device``, float32, in eval mode.
        pixels: (H, W) or (H, W, C), uint8 or uint16.
        preprocessing: The network's.
        device: Where it runs.
        tiles_for: As `engine_answers` takes it.

    Returns:
        Its probabilities, and notes on what was converted; see `engine_answers`.

    Raises:
        FrameError: If the frame does not suit the model.
    """
    engine = TorchEngine(network, preprocessing, device)
    return engine_probabilities(engine, [pixels], preprocessing, tiles_for)[0]


def engine_probabilities(
    engine: Engine,
    frames: Sequence[Pixels],
    preprocessing: Preprocessing,
    tiles_for: TilesFor = look_whole,
) -> list[tuple[NDArray[np.float32], list[str]]]:
    """Return the probabilities and the notes of `engine_answers`."""
    answers = engine_answers(engine, frames, preprocessing, tiles_for)
    return [(answer.probabilities, answer.notes) for answer in answers]


def engine_answers(
    engine: Engine,
    frames: Sequence[Pixels],
    preprocessing: Preprocessing,
    tiles_for: TilesFor = look_whole,
) -> list[FrameProbabilities]:
    """Ask an engine about whole frames of one shape and dtype in one forward.

    A network of resized frames sees the frame resized; its probabilities are interpolated
    bilinearly to the frame's own size, so that whoever reads them deals with native pixels alone.

    Args:
        engine: Who is asked.
        frames: (H, W) or (H, W, C) each.
        preprocessing: The model's.
        tiles_for: Returns the tiles to cut frames into, of the padded height and width and the
            number of frames, or None to look at them whole.

    Raises:
        FrameError: If the frames do not suit the model.
        EngineError: The engine failed.
    """
    native: tuple[int, int] = (frames[0].shape[0], frames[0].shape[1])
    prepared = [model_pixels(pixels, preprocessing) for pixels in frames]
    height, width = prepared[0][0].shape[:2]
    padded = [pad_pixels(pixels, preprocessing.stride_px) for pixels, _ in prepared]
    # A single frame is not copied.
    batch: Any = padded[0][None] if len(padded) == 1 else np.stack(padded)
    answer, peaks = _asked(engine, batch, tiles_for, [notes for _, notes in prepared])
    answer = answer[:, :, :height, :width]
    if (height, width) != native:
        answer, peaks = _interpolated(answer, native), None
    if peaks is not None:
        # Blocks that reach into the padding are none of the frame's.
        peaks = peaks[:, :, : height // BLOCK_PX, : width // BLOCK_PX]
    return [
        FrameProbabilities(answer[index], notes, None if peaks is None else peaks[index])
        for index, (_, notes) in enumerate(prepared)
    ]


def warm_up(
    engine: Engine,
    pixels: Pixels,
    preprocessing: Preprocessing,
    count: int = 1,
    tiles_for: TilesFor = look_whole,
) -> None:
    """Let an engine allocate, choose and record for ``count`` frames at a time of these pixels."""
    until_s = time.monotonic() + _LONGEST_WARMING_S
    frames = [pixels] * count
    engine_answers(engine, frames, preprocessing, tiles_for)
    # A shape is recorded when it comes twice in a row, unless another thread is recording then.
    while isinstance(engine, TorchEngine) and not engine.is_warm and time.monotonic() < until_s:
        engine_answers(engine, frames, preprocessing, tiles_for)


def _asked(
    engine: Engine, batch: Any, tiles_for: TilesFor, notes: Sequence[list[str]]
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    tiles = tiles_for((batch.shape[1], batch.shape[2]), len(batch))
    if tiles is not None:
        for of_frame in notes:
            of_frame.append(
                f"looked at in {len(tiles)} tiles, because memory does not hold the whole frame"
            )
        return tiled_probabilities(engine, batch, tiles), None
    if isinstance(engine, TorchEngine):
        return engine.probabilities_and_peaks(batch)
    return engine.probabilities(batch), None


@torch.inference_mode()
def _interpolated(probabilities: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    enlarged: NDArray[np.float32] = F.interpolate(
        torch.from_numpy(probabilities), size, mode="bilinear", align_corners=False
    ).numpy()
    return enlarged


def resolve_device(device: str) -> torch.device:
    """Return the device meant by ``auto``, ``cpu``, ``cuda`` or ``cuda:1``."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device)
