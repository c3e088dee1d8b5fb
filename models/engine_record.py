"""What is known of a model's engines on one machine: ``engines.json`` beside the exported files."""

import contextlib
import hashlib
import json
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from models.bundle import BundleInfo, file_sha256
from models.engines import (
    REFERENCE_ENGINE,
    Engine,
    EngineName,
    OnnxRuntimeEngine,
    OpenVinoEngine,
)
from models.errors import EngineError
from models.exporting import INT8_NAMES, ONNX_NAME, OPENVINO_NAME, companion_files
from models.parity import ParityOutcome

RECORD_NAME = "engines.json"
_LIBRARIES = ("torch", "onnxruntime", "openvino", "nncf")
# What decides in which precision and how fast a processor computes.
_TELLING_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "asimd")


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Machine(_Record):
    """What a measured engine depends on; on another machine it is measured again.

    Attributes:
        processor: Name and instruction sets.
        threads: Cores that torch and the runtimes may use.
        accelerator: The name of the GPU that serves; None if a processor does.
        libraries: Versions of those that are installed, and of cuDNN where a GPU serves.
    """

    processor: str
    threads: int
    accelerator: str | None
    libraries: dict[str, str]

    @classmethod
    def here(cls, device: torch.device) -> Self:
        """Return this one, of which a model served on a processor does not see the GPU."""
        on_gpu = device.type == "cuda"
        return cls(
            processor=_processor(),
            threads=torch.get_num_threads(),
            accelerator=torch.cuda.get_device_name(device) if on_gpu else None,
            libraries=_library_versions(on_gpu=on_gpu),
        )

    def differences(self, other: "Machine") -> str:
        """Return in words what differs in another machine; empty if nothing does."""
        names = ("processor", "threads", "accelerator")
        found = [name for name in names if getattr(self, name) != getattr(other, name)]
        mine, its = self.libraries, other.libraries
        found += sorted(
            name for name in mine.keys() | its.keys() if mine.get(name) != its.get(name)
        )
        return ", ".join(found)


class EngineMeasurement(_Record):
    """One engine: how fast it was, and whether its verdicts are the network's.

    Attributes:
        name: The engine.
        device: ``cpu`` or ``cuda``.
        median_ms: Of the network on one frame of ``EngineRecord.frame_size``; None if not measured.
        times_faster: Than the reference, timed in turns with it.
        parity: With the reference; None of the reference itself, and of what could not be run.
        refusal: Why it may not serve; None if it may.
    """

    name: EngineName
    device: str
    median_ms: float | None = None
    times_faster: float | None = None
    parity: ParityOutcome | None = None
    refusal: str | None = None


class GoldenSet(_Record):
    """Which frames the engines were compared on.

    Attributes:
        available: Calibration frames of the model's version.
        scored: Of them, those whose distance to the thresholds was looked at.
        compared: Of those, the ones nearest to a threshold.
        synthetic: Drawn ones besides.
        quantized_on: Training frames that set the ranges of 8 bits.
    """

    available: int
    scored: int
    compared: int
    synthetic: int
    quantized_on: int


class EngineRecord(_Record):
    """What was measured, what was chosen, and the files that belong to it.

    Attributes:
        format_version: Of this file.
        model_digest: See `model_digest`: weights and operating point that were compared.
        machine: Where.
        frame_size: Height and width of the frames that were timed.
        golden: The frames.
        engines: In the order they were tried.
        chosen: What serves the model on this machine.
        files: SHA-256 of each exported file by its name.
    """

    format_version: Literal[1] = 1
    model_digest: str
    machine: Machine
    frame_size: tuple[int, int]
    golden: GoldenSet
    engines: tuple[EngineMeasurement, ...]
    chosen: EngineName
    files: dict[str, str]

    def of(self, name: EngineName) -> EngineMeasurement | None:
        """Return what is known of an engine; None if it was not tried."""
        return next((engine for engine in self.engines if engine.name == name), None)


def model_digest(info: BundleInfo) -> str:
    """Return a digest of all that a verdict depends on: weights, preprocessing, thresholds."""
    told = info.model_dump(
        mode="json",
        include={"task", "classes", "model", "norm", "preprocessing", "weights_sha256"},
    )
    points = {
        name: (point.threshold, point.min_area_px)
        for name, point in info.operating_point.classes.items()
    }
    text = json.dumps([told, points], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def write_record(folder: Path, record: EngineRecord) -> None:
    """Write ``engines.json``; a reader sees the old one or the new one."""
    partial = folder / f".{RECORD_NAME}.partial"
    with partial.open("w", encoding="utf-8") as file:
        file.write(record.model_dump_json(indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(folder / RECORD_NAME)


def read_record(folder: Path) -> EngineRecord | None:
    """Return what is known of a model's engines; None if nothing was prepared.

    Raises:
        EngineError: The file is damaged.
    """
    try:
        return EngineRecord.model_validate(json.loads((folder / RECORD_NAME).read_bytes()))
    except FileNotFoundError:
        return None
    except (ValidationError, ValueError, OSError) as error:
        raise EngineError(
            "engines_damaged",
            f"{RECORD_NAME} can't be read: {str(error).splitlines()[0]}",
            file=RECORD_NAME,
            hint="prepare the model's engines again",
        ) from error


def check_usable(record: EngineRecord, info: BundleInfo, machine: Machine) -> None:
    """Refuse a record of another model or another machine.

    Raises:
        EngineError: It says what differs.
    """
    if record.model_digest != model_digest(info):
        raise EngineError(
            "engines_of_another_model",
            f"{RECORD_NAME} belongs to other weights or thresholds",
            file=RECORD_NAME,
            hint="prepare the model's engines again",
        )
    differences = machine.differences(record.machine)
    if differences:
        raise EngineError(
            "engines_of_another_machine",
            f"the engines were measured elsewhere, what differs: {differences}",
            file=RECORD_NAME,
            hint="prepare the model's engines again",
        )


def load_exported(folder: Path, record: EngineRecord, name: EngineName) -> Engine:
    """Load an exported engine whose files are those that were compared.

    Raises:
        EngineError: A file is missing or has changed, or can't be loaded.
    """
    path = folder / exported_name(name)
    for file in companion_files(path):
        if not file.is_file() or file_sha256(file) != record.files.get(file.name):
            raise EngineError(
                "export_damaged",
                f"{file.name} is missing or is not the file that was compared",
                file=file.name,
                hint="prepare the model's engines again",
            )
    if name == "onnxruntime-fp32":
        return OnnxRuntimeEngine(path)
    return OpenVinoEngine(path, name)


def exported_name(name: EngineName) -> str:
    """Return the file that an engine runs; only of those that run one."""
    if name == "onnxruntime-fp32":
        return ONNX_NAME
    assert name not in ("torch-fp32", "torch-bf16", "torch-fp16")
    return INT8_NAMES.get(name, OPENVINO_NAME)


def fastest(engines: tuple[EngineMeasurement, ...], device: str) -> EngineName:
    """Return the fastest engine of a device that may serve; the reference if none is faster.

    Each was timed in turns with the reference, so that ratios compare where seconds, measured
    minutes apart beside other work, would not.
    """
    able = {
        engine.name: engine.times_faster
        for engine in engines
        if engine.device == device and engine.refusal is None and engine.times_faster is not None
    }
    best = max(able, key=lambda name: able[name], default=REFERENCE_ENGINE)
    return best if able.get(best, 0.0) > 1 else REFERENCE_ENGINE


def _library_versions(*, on_gpu: bool) -> dict[str, str]:
    versions = {}
    for name in _LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    if on_gpu:
        # It chooses the algorithms of convolutions by rules of its own.
        versions["cudnn"] = str(torch.backends.cudnn.version())  # type: ignore[no-untyped-call]
    return versions


def _processor() -> str:
    name, flags = platform.processor() or platform.machine(), ""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return name
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            name = value.strip()
        if key.strip() in ("flags", "Features"):
            flags = " ".join(flag for flag in _TELLING_FLAGS if flag in value.split())
            break
    return f"{name} ({flags})" if flags else name
