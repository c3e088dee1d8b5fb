"""Preparing a model's engines: export, compare with the network on golden frames, time, choose."""

import copy
import logging
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from models.bundle import file_sha256, load_bundle
from models.engine_record import (
    EngineMeasurement,
    EngineRecord,
    GoldenSet,
    Machine,
    exported_name,
    fastest,
    model_digest,
    write_record,
)
from models.engines import (
    REFERENCE_ENGINE,
    TORCH_DTYPES,
    Engine,
    EngineName,
    OnnxRuntimeEngine,
    OpenVinoEngine,
    TorchEngine,
    processor_has_bf16,
)
from models.errors import EngineError
from models.exporting import (
    INT8_NAME,
    ONNX_NAME,
    OPENVINO_NAME,
    check_exportable,
    convert_to_openvino,
    export_onnx,
    quantize,
)
from models.parity import (
    FrameAnswer,
    ParityTally,
    distance_to_thresholds,
    look,
    synthetic_extremes,
)
from models.preprocessing import Pixels, model_pixels, pad_pixels
from models.runtime import FrozenModel, engine_probabilities

logger = logging.getLogger(__name__)

# On two cores a frame of 5 megapixels takes eager torch some seconds; these keep a preparation
# within half an hour there.
SCORED_FRAMES = 96
GOLDEN_FRAMES = 32
QUANTIZATION_FRAMES = 24
_WINDOW_PX = 512
_ROUNDS = 3


@dataclass(frozen=True)
class StoredFrame:
    """A frame that is read when it is needed: many of them would fill the memory.

    Attributes:
        name: As it is told of.
        read: Returns its pixels.
        is_drawn: Whether it is a drawn extreme, of which the verdict alone is compared.
    """

    name: str
    read: Callable[[], Pixels]
    is_drawn: bool = False


@dataclass(frozen=True)
class FrameSource:
    """Real frames of a model's version.

    Attributes:
        calibration: The frames that its thresholds were chosen on: they judge the engines.
        training: They set the ranges of 8 bits, and judge nothing.
    """

    calibration: Sequence[StoredFrame]
    training: Sequence[StoredFrame]


def prepare_engines(
    bundle_path: Path, folder: Path, frames: FrameSource, device: str = "auto"
) -> EngineRecord:
    """Export a bundle, compare and time every engine of this machine, and record the fastest.

    Golden are the calibration frames nearest to a threshold, all of them if they are few, and
    `models.parity.synthetic_extremes`.

    Args:
        bundle_path: The bundle.
        folder: Receives the exported files and, when all else is there, ``engines.json``.
        frames: Of the version that the model was trained on.
        device: Where the model is served; exports are compared on the processor in any case.

    Raises:
        BundleError: The bundle is missing or damaged.
        EngineError: The model is a detector, or the network can't be exported.
    """
    bundle = load_bundle(bundle_path)
    check_exportable(bundle.info)
    if not frames.calibration:
        raise EngineError(
            "no_golden_frames",
            "the model's version has no calibration frame to compare engines on",
            hint="torch serves the model all the same",
        )
    model = FrozenModel(bundle, device)
    building = folder / ".building"
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    try:
        return _Preparation(model, building, frames).run(folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)


class _Preparation:
    """One preparation: the model, where its files are being made, and the frames."""

    def __init__(self, model: FrozenModel, building: Path, frames: FrameSource) -> None:
        self._model = model
        self._info = model.info
        self._building = building
        self._frames = frames
        self._quantized_on = 0

    def run(self, folder: Path) -> EngineRecord:
        onnx, openvino = self._building / ONNX_NAME, self._building / OPENVINO_NAME
        export_onnx(self._model.network, self._info, onnx)
        convert_to_openvino(onnx, openvino)
        scorer = OpenVinoEngine(openvino)
        golden, scored = self._golden(scorer)
        refused = self._quantize(scorer)
        del scorer  # One engine at a time is held beside the network.
        size, timed = _commonest(golden)
        extremes = [
            StoredFrame(frame.name, partial(np.asarray, frame.pixels), is_drawn=True)
            for frame in synthetic_extremes(size, self._info.preprocessing)
        ]
        frames = [*golden, *extremes]
        answers = [look(self._model.reference, frame.read(), self._info) for frame in frames]
        measured = [self._reference(timed)]
        measured += [self._measure(name, frames, answers, timed) for name in self._candidates()]
        measured += refused
        engines = tuple(measured)
        record = EngineRecord(
            model_digest=model_digest(self._info),
            machine=Machine.here(),
            frame_size=size,
            golden=GoldenSet(
                available=len(self._frames.calibration),
                scored=scored,
                compared=len(golden),
                synthetic=len(extremes),
                quantized_on=self._quantized_on,
            ),
            engines=engines,
            chosen=fastest(engines, self._model.device.type),
            files={path.name: file_sha256(path) for path in sorted(self._building.iterdir())},
        )
        for path in sorted(self._building.iterdir()):
            path.replace(folder / path.name)
        write_record(folder, record)
        return record

    def _candidates(self) -> list[EngineName]:
        names: list[EngineName] = []
        if self._model.device.type == "cuda":
            names += ["torch-bf16", "torch-fp16"]
        elif processor_has_bf16():
            names += ["torch-bf16", "openvino-bf16"]
        if (self._building / INT8_NAME).exists():
            names.append("openvino-int8")
        return [*names, "openvino-fp32", "onnxruntime-fp32"]

    def _golden(self, scorer: Engine) -> tuple[list[StoredFrame], int]:
        """Return the real frames to compare on, and how many were scored to find them."""
        available = self._frames.calibration
        if len(available) <= GOLDEN_FRAMES:
            return list(available), 0
        scored = spread(available, SCORED_FRAMES)
        distances = [
            distance_to_thresholds(look(scorer, frame.read(), self._info), self._info)
            for frame in scored
        ]
        nearest = np.argsort(distances, kind="stable")[:GOLDEN_FRAMES]
        return [scored[index] for index in sorted(nearest)], len(scored)

    def _quantize(self, scorer: Engine) -> list[EngineMeasurement]:
        """Make the 8-bit form; return what to record where there is none."""
        chosen = spread(self._frames.training, QUANTIZATION_FRAMES)
        self._quantized_on = len(chosen)
        if not chosen:
            reason = "there is no training frame to set the ranges of 8 bits"
            return [EngineMeasurement(name="openvino-int8", device="cpu", refusal=reason)]
        try:
            windows = [self._window(scorer, frame.read()) for frame in chosen]
            quantize(self._building / OPENVINO_NAME, windows, self._building / INT8_NAME)
        except EngineError as error:
            logger.warning("no 8-bit form: %s", error.detail)
            return [EngineMeasurement(name="openvino-int8", device="cpu", refusal=error.detail)]
        return []

    def _window(self, scorer: Engine, pixels: Pixels) -> Pixels:
        """Return the window of a frame around what looks most like a defect."""
        ((probabilities, _),) = engine_probabilities(scorer, [pixels], self._info.preprocessing)
        strongest = probabilities.max(axis=0)
        prepared, _ = model_pixels(pixels, self._info.preprocessing)
        # A model of resized frames answers at the frame's own size.
        peak = np.unravel_index(int(strongest.argmax()), strongest.shape)
        scale = prepared.shape[0] / strongest.shape[0]
        top, left = (
            int(np.clip(round(int(at) * scale) - _WINDOW_PX // 2, 0, max(0, side - _WINDOW_PX)))
            for at, side in zip(peak, prepared.shape[:2], strict=True)
        )
        window: Any = prepared[top : top + _WINDOW_PX, left : left + _WINDOW_PX]
        padded = pad_pixels(window, self._info.preprocessing.stride_px)
        return np.require(padded, requirements="C")

    def _reference(self, timed: Pixels) -> EngineMeasurement:
        reference = self._model.reference
        times_ms = [self._time_ms(reference, timed) for _ in range(_ROUNDS)]
        return EngineMeasurement(
            name=REFERENCE_ENGINE,
            device=reference.device.type,
            median_ms=statistics.median(times_ms),
            times_faster=1.0,
        )

    def _measure(
        self,
        name: EngineName,
        frames: Sequence[StoredFrame],
        answers: Sequence[FrameAnswer],
        timed: Pixels,
    ) -> EngineMeasurement:
        """Compare an engine on every golden frame, then time it in turns with the reference."""
        device = self._model.device.type if name.startswith("torch") else "cpu"
        tally = ParityTally(name, self._info)
        try:
            engine = self._open(name)
            for frame, answer in zip(frames, answers, strict=True):
                found = look(engine, frame.read(), self._info)
                tally.add(frame.name, answer, found, is_drawn=frame.is_drawn)
            self._time_ms(engine, timed)
            rounds = [
                (self._time_ms(engine, timed), self._time_ms(self._model.reference, timed))
                for _ in range(_ROUNDS)
            ]
        except EngineError as error:
            logger.warning("%s: %s", name, error.detail)
            return EngineMeasurement(name=name, device=device, refusal=error.detail)
        parity = tally.outcome()
        its, references = zip(*rounds, strict=True)
        measurement = EngineMeasurement(
            name=name,
            device=device,
            median_ms=statistics.median(its),
            times_faster=statistics.median(references) / statistics.median(its),
            parity=parity,
            refusal=parity.refusal,
        )
        logger.info(
            "%s: %.1f ms, %.2f times the reference's speed, %s",
            name,
            measurement.median_ms,
            measurement.times_faster,
            parity.refusal or "the same verdicts",
        )
        return measurement

    def _open(self, name: EngineName) -> Engine:
        if name.startswith("torch"):
            return torch_engine(self._model, name)
        path = self._building / exported_name(name)
        return OnnxRuntimeEngine(path) if name == "onnxruntime-fp32" else OpenVinoEngine(path, name)

    def _time_ms(self, engine: Engine, pixels: Pixels) -> float:
        began_s = time.perf_counter()
        engine_probabilities(engine, [pixels], self._info.preprocessing)
        return 1000 * (time.perf_counter() - began_s)


def torch_engine(model: FrozenModel, name: EngineName) -> TorchEngine:
    """Return a model's network under torch in the precision of a name; the model keeps its own."""
    network = copy.deepcopy(model.network).to(dtype=TORCH_DTYPES[name])
    return TorchEngine(network, model.info.preprocessing, model.device, name)


def spread(frames: Sequence[StoredFrame], limit: int) -> list[StoredFrame]:
    """Return at most ``limit`` frames, evenly spread over their order."""
    if len(frames) <= limit:
        return list(frames)
    return [frames[round(index)] for index in np.linspace(0, len(frames) - 1, limit)]


def _commonest(frames: Sequence[StoredFrame]) -> tuple[tuple[int, int], Pixels]:
    """Return the commonest height and width, and the pixels of the first frame that has them."""
    sizes = []
    for frame in frames:
        height, width = frame.read().shape[:2]
        sizes.append((height, width))
    size = statistics.mode(sizes)
    return size, frames[sizes.index(size)].read()
