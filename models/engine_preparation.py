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
    INT8_NAMES,
    ONNX_NAME,
    OPENVINO_NAME,
    check_exportable,
    convert_to_openvino,
    export_onnx,
)
from models.parity import (
    FrameAnswer,
    ParityTally,
    distance_to_thresholds,
    look,
    synthetic_extremes,
)
from models.preprocessing import Pixels, model_pixels, pad_pixels
from models.quantization import quantize
from models.runtime import FrozenModel, engine_probabilities, warm_up

logger = logging.getLogger(__name__)

# On two cores a frame of 5 megapixels takes eager torch some seconds; these keep a preparation
# within half an hour there.
SCORED_FRAMES = 96
GOLDEN_FRAMES = 32
QUANTIZATION_FRAMES = 24
_WINDOW_PX = 512
_ROUNDS = 3
# There a frame takes milliseconds, and the first ones of a size more.
_ROUNDS_ON_GPU = 20


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
    bundle_path: Path,
    folder: Path,
    frames: FrameSource,
    device: str = "auto",
    *,
    exports: bool = True,
) -> EngineRecord:
    """Export a bundle, compare and time every engine of this machine, and record the fastest.

    Golden are the calibration frames nearest to a threshold, all of them if they are few, and
    `models.parity.synthetic_extremes`.  On a GPU torch's engines are compared and recorded
    first, so that the line has its engine while files are made, which are for use elsewhere.

    Args:
        bundle_path: The bundle.
        folder: Receives the exported files and, when all else is there, ``engines.json``.
        frames: Of the version that the model was trained on.
        device: Where the model is served; exports are compared on the processor in any case.
        exports: Whether there are to be exported files; without them torch's engines alone are
            compared.

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
        return _Preparation(model, building, frames).run(folder, exports=exports)
    finally:
        shutil.rmtree(building, ignore_errors=True)


@dataclass(frozen=True)
class _Comparison:
    """What every engine is compared on.

    Attributes:
        size: The commonest height and width.
        timed: The pixels of a frame that has them.
        frames: Real ones, then drawn ones.
        answers: The reference's to each.
        golden: How many there are of which.
    """

    size: tuple[int, int]
    timed: Pixels
    frames: Sequence[StoredFrame]
    answers: Sequence[FrameAnswer]
    golden: GoldenSet


class _Preparation:
    """One preparation: the model, where its files are being made, and the frames."""

    def __init__(self, model: FrozenModel, building: Path, frames: FrameSource) -> None:
        self._model = model
        self._info = model.info
        self._building = building
        self._frames = frames
        self._quantized_on = 0
        self._refused: list[EngineMeasurement] = []

    def run(self, folder: Path, *, exports: bool) -> EngineRecord:
        on_gpu = self._model.device.type == "cuda"
        scorer: Engine = self._model.reference
        if exports and not on_gpu:
            self._export()
            convert_to_openvino(self._building / ONNX_NAME, self._building / OPENVINO_NAME)
            scorer = OpenVinoEngine(self._building / OPENVINO_NAME)
        golden, scored = self._golden(scorer)
        if exports and not on_gpu:
            self._quantize(scorer)
        del scorer  # One engine at a time is held beside the network.
        compared = self._compared(golden, scored)
        measured = [self._reference(compared.timed)]
        measured += [self._measure(name, compared) for name in self._torch_names()]
        if exports and on_gpu:
            self._record(folder, compared, measured)
            self._export()
            self._convert_if_installed()
        measured += [self._measure(name, compared) for name in self._exported_names()]
        return self._record(folder, compared, [*measured, *self._refused])

    def _export(self) -> None:
        export_onnx(self._model.network, self._info, self._building / ONNX_NAME)

    def _convert_if_installed(self) -> None:
        try:
            convert_to_openvino(self._building / ONNX_NAME, self._building / OPENVINO_NAME)
        except EngineError as error:
            # Nothing is served by it on a GPU.
            self._refuse("openvino-fp32", error.detail)

    def _refuse(self, name: EngineName, reason: str) -> None:
        logger.warning("%s: %s", name, reason)
        self._refused.append(EngineMeasurement(name=name, device="cpu", refusal=reason))

    def _compared(self, golden: Sequence[StoredFrame], scored: int) -> _Comparison:
        size, timed = _commonest(golden)
        extremes = [
            StoredFrame(frame.name, partial(np.asarray, frame.pixels), is_drawn=True)
            for frame in synthetic_extremes(size, self._info.preprocessing)
        ]
        frames = [*golden, *extremes]
        return _Comparison(
            size=size,
            timed=timed,
            frames=frames,
            answers=[look(self._model.reference, frame.read(), self._info) for frame in frames],
            golden=GoldenSet(
                available=len(self._frames.calibration),
                scored=scored,
                compared=len(golden),
                synthetic=len(extremes),
                quantized_on=self._quantized_on,
            ),
        )

    def _record(
        self, folder: Path, compared: _Comparison, measured: Sequence[EngineMeasurement]
    ) -> EngineRecord:
        """Put the files in place, then the record that names them."""
        engines = tuple(measured)
        files = sorted(self._building.iterdir())
        record = EngineRecord(
            model_digest=model_digest(self._info),
            machine=Machine.here(self._model.device),
            frame_size=compared.size,
            golden=compared.golden,
            engines=engines,
            chosen=fastest(engines, self._model.device.type),
            files={path.name: file_sha256(path) for path in files},
        )
        for path in files:
            path.replace(folder / path.name)
        write_record(folder, record)
        return record

    def _torch_names(self) -> list[EngineName]:
        if self._model.device.type == "cuda":
            return ["torch-bf16", "torch-fp16"]
        return ["torch-bf16"] if processor_has_bf16() else []

    def _exported_names(self) -> list[EngineName]:
        """Return the engines whose files were made; fewer on a GPU, which is served by none."""
        names: list[EngineName] = []
        has_openvino = (self._building / OPENVINO_NAME).exists()
        if has_openvino and self._model.device.type == "cpu" and processor_has_bf16():
            names.append("openvino-bf16")
        names += [name for name, file in INT8_NAMES.items() if (self._building / file).exists()]
        if has_openvino:
            names.append("openvino-fp32")
        if (self._building / ONNX_NAME).exists():
            names.append("onnxruntime-fp32")
        return names

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

    def _quantize(self, scorer: Engine) -> None:
        """Make the 8-bit forms, the fastest first, or note why there is one less."""
        chosen = spread(self._frames.training, QUANTIZATION_FRAMES)
        self._quantized_on = len(chosen)
        source = self._building / OPENVINO_NAME
        windows: list[Pixels] = []
        for name, file in INT8_NAMES.items():
            if not chosen:
                self._refuse(name, "there is no training frame to set the ranges of 8 bits")
                continue
            try:
                windows = windows or [self._window(scorer, frame.read()) for frame in chosen]
                spares_narrow = name == "openvino-int8-mixed"
                quantize(source, windows, self._building / file, spares_narrow=spares_narrow)
            except EngineError as error:
                self._refuse(name, error.detail)

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

    def _measure(self, name: EngineName, compared: _Comparison) -> EngineMeasurement:
        """Compare an engine on every golden frame, then time it in turns with the reference."""
        device = self._model.device.type if name.startswith("torch") else "cpu"
        tally, timed = ParityTally(name, self._info), compared.timed
        try:
            engine = self._open(name)
            for frame, answer in zip(compared.frames, compared.answers, strict=True):
                found = look(engine, frame.read(), self._info)
                tally.add(frame.name, answer, found, is_drawn=frame.is_drawn)
            warm_up(engine, timed, self._info.preprocessing)
            rounds = [
                (self._time_ms(engine, timed), self._time_ms(self._model.reference, timed))
                for _ in range(_ROUNDS if device == "cpu" else _ROUNDS_ON_GPU)
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
