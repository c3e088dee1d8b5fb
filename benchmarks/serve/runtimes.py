"""Every engine on the same frames: speed in turns with eager torch, memory, verdicts.

The network is one that a job of the service has trained on drawn frames; the frames that are judged
and timed are of the whole size, and it has learned from none of them.  ``runtimes`` takes a job's
default U-Net, ``runtimes-wide`` one whose decoder is as wide as its library makes it, which is what
other teams' figures are of.  On a GPU torch's engines alone take part unless exports are asked for:
nothing that runs on a processor would be chosen there.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.data.running_service import running_service
from benchmarks.serve.latency import FULL, QUICK, WORK
from benchmarks.serve.page import PAGE, accelerator, add_device, section_of
from benchmarks.serve.trained_models import PRODUCT_SEED, Recipe, known_model, trained_model
from data.synthetic import draw_frame
from models import Bundle, FrozenModel, Pixels, load_bundle, resolve_device
from models.cuda_graphs import release_cached_memory
from models.engine_preparation import (
    FrameSource,
    StoredFrame,
    prepare_engines,
    torch_engine,
)
from models.engine_record import EngineMeasurement, EngineRecord, load_exported
from models.engines import REFERENCE_ENGINE, Engine, EngineName, PixelNetwork
from models.runtime import engine_probabilities, warm_up
from service.serve import QUIET_ENVIRONMENT

# Of the frames that judge; those that set the ranges of 8 bits are drawn from other seeds.
_JUDGING_SEEDS = range(301, 305)
_QUANTIZATION_SEEDS = range(401, 413)
_PLAIN_ROUNDS, _PLAIN_ROUNDS_ON_GPU = 3, 20
# Of segmentation_models_pytorch; the product's are half of it.
_LIBRARY_DECODER = [256, 128, 64, 32, 16]
_ON_PROCESSOR = "Peak memory is that of a process of its own, Python and libraries included."
_ON_GPU = (
    "It computes in TF32, torch's own setting, and `torch-fp32` in float32. Peak memory is what "
    "torch gave out on the GPU for the model and its engine."
)
_GOALS = {"the fastest engine of a processor": 4.0, "8 bits": 7.0}


@dataclass(frozen=True)
class Profile:
    """How much a run costs.

    Attributes:
        width_px: Of the frames that judge and are timed.
        height_px: Of the same.
        recipe: Of the network.
    """

    width_px: int
    height_px: int
    recipe: Recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's arguments."""
    PAGE.add_arguments(parser)
    add_device(parser)
    parser.add_argument(
        "--exports", action="store_true", help="beside a GPU's engines those of the processor"
    )
    parser.add_argument("--work", type=Path, default=WORK, help="storage and drawn frames")


def run(arguments: argparse.Namespace) -> int:
    """Measure and write the page; return the exit status."""
    device = resolve_device(arguments.device)
    exports = arguments.exports or device.type == "cpu"

    def measure(quick: bool) -> dict[str, Any]:
        latency = QUICK if quick else FULL
        recipe = latency.mono
        if arguments.command == "runtimes-wide" and not quick:
            network = {**recipe.job["model"], "decoder_channels": _LIBRARY_DECODER}
            recipe = replace(recipe, name="wide", job={**recipe.job, "model": network})
        profile = Profile(latency.width_px, latency.height_px, recipe)
        return measure_runtimes(profile, arguments.work, device, exports=exports)

    options = ("--exports",) if arguments.exports else ()
    return PAGE.record(section_of(arguments.command, device), arguments, measure, options)


def measure_runtimes(
    profile: Profile, work: Path, device: torch.device, *, exports: bool
) -> dict[str, Any]:
    """Return the section of one run.

    Side effects: keeps the trained model in ``work``; a service trains it unless it is there.
    """
    os.environ.update({**QUIET_ENVIRONMENT, **os.environ})
    work.mkdir(parents=True, exist_ok=True)
    model_id = known_model(profile.recipe, work)
    if model_id is None:
        with running_service(work) as (client, _, _):
            model_id = trained_model(client, profile.recipe, work)
    bundle = work / "storage" / "bundles" / model_id
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        record = prepare_engines(bundle, folder, _frames(profile), device.type, exports=exports)
        plain = plain_times_faster(bundle, profile, device)
        able = [
            engine
            for engine in record.engines
            if engine.parity is not None or engine.name == REFERENCE_ENGINE
        ]
        peaks = {
            engine.name: gpu_peak_bytes(bundle, engine.name, profile, device)
            if engine.device == "cuda"
            else peak_bytes(bundle, folder, engine.name, profile)
            for engine in able
        }
    return {**section(record, plain, peaks, device), "accelerator": accelerator(device)}


def _frames(profile: Profile) -> FrameSource:
    # Drawing one takes a second, and each is looked at by every engine.
    @cache
    def drawn(seed: int, width_px: int, height_px: int) -> Any:
        size = {"width_px": width_px, "height_px": height_px}
        return draw_frame(seed, product_seed=PRODUCT_SEED, defects=bool(seed % 2), **size).pixels

    def stored(seeds: Sequence[int], width_px: int, height_px: int) -> list[StoredFrame]:
        return [
            StoredFrame(f"drawn {seed}", partial(drawn, seed, width_px, height_px))
            for seed in seeds
        ]

    recipe = profile.recipe
    return FrameSource(
        calibration=stored(_JUDGING_SEEDS, profile.width_px, profile.height_px),
        training=stored(_QUANTIZATION_SEEDS, recipe.width_px, recipe.height_px),
    )


class PlainNetwork:
    """A network as it was trained, in eager mode with torch's own settings.

    It is what a team gets that calls ``network.eval()(batch)`` and changes nothing: batch norms are
    not folded, the layout is the one that torch builds networks in, and on a GPU convolutions
    compute in TF32.

    Args:
        bundle: It belongs to this object from now on.
        device: Where it runs.
    """

    name: EngineName = REFERENCE_ENGINE

    def __init__(self, bundle: Bundle, device: torch.device) -> None:
        self.device = device
        network = bundle.network.eval().to(device)
        self._network = PixelNetwork(network, bundle.info.preprocessing, device=device)

    @torch.inference_mode()
    def probabilities(self, pixels: Pixels) -> NDArray[np.float32]:
        """See `models.engines.Engine.probabilities`."""
        answer: NDArray[np.float32] = (
            self._network(torch.from_numpy(pixels).to(self.device)).contiguous().cpu().numpy()
        )
        return answer


def plain_times_faster(bundle: Path, profile: Profile, device: torch.device) -> float:
    """Return how fast the network as it was trained is in eager mode, beside the served one."""
    model = FrozenModel(load_bundle(bundle), device.type)
    engines: tuple[Engine, Engine] = (model.reference, PlainNetwork(load_bundle(bundle), device))
    frame, preprocessing = _blank(profile), model.info.preprocessing
    rounds = _PLAIN_ROUNDS
    if device.type == "cuda":
        rounds = _PLAIN_ROUNDS_ON_GPU
        for engine in engines:
            warm_up(engine, frame, preprocessing)
    ratios = []
    for _ in range(rounds):
        times_s = []
        for engine in engines:
            began_s = time.perf_counter()
            engine_probabilities(engine, [frame], preprocessing)
            times_s.append(time.perf_counter() - began_s)
        ratios.append(times_s[0] / times_s[1])
    return statistics.median(ratios)


def gpu_peak_bytes(bundle: Path, name: EngineName, profile: Profile, device: torch.device) -> int:
    """Return the most memory of the GPU that torch gave out while one engine was asked.

    The model's own network is part of it, as it is where a model is served; what CUDA takes for
    itself is not.
    """
    release_cached_memory(device)
    before_bytes = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    model = FrozenModel(load_bundle(bundle), device.type)
    engine = model.reference if name == REFERENCE_ENGINE else torch_engine(model, name)
    warm_up(engine, _blank(profile), model.info.preprocessing)
    engine_probabilities(engine, [_blank(profile)], model.info.preprocessing)
    return torch.cuda.max_memory_allocated(device) - before_bytes


def peak_bytes(bundle: Path, folder: Path, name: EngineName, profile: Profile) -> int:
    """Return the most memory that a process of its own held which asked one engine twice."""
    arguments = [str(bundle), str(folder), name, str(profile.height_px), str(profile.width_px)]
    command = [sys.executable, "-m", "benchmarks.serve.runtimes", *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603 - our own program.
    return int(json.loads(done.stdout.splitlines()[-1]))


def _blank(profile: Profile) -> Any:
    return np.zeros((profile.height_px, profile.width_px), np.uint8)


def section(
    record: EngineRecord, plain: float, peaks: dict[EngineName, int], device: torch.device
) -> dict[str, Any]:
    """Return the page's section: a row an engine, fastest last."""
    height, width = record.frame_size
    golden = record.golden
    on_gpu = device.type == "cuda"
    how = (
        f"One frame of {width}x{height}, U-Net, trained; each engine in turns with the network as "
        "served by eager torch in channels_last, medians, from the camera's bytes to probabilities "
        "in the host's memory. `plain` is eager torch with batch norms "
        "not folded and in the layout that torch builds a network in, which is what most endpoints "
        f"serve. {_ON_GPU if on_gpu else _ON_PROCESSOR}"
    )
    ranges = f"; ranges of 8 bits from {golden.quantized_on} other frames"
    ranges = ranges if golden.quantized_on else ""
    judged = (
        f"Judged on {golden.compared} drawn frames of that size and {golden.synthetic} synthetic "
        f"extremes{ranges}. Chosen: `{record.chosen}`."
    )
    notes = [how, judged]
    if not on_gpu:
        notes += _goals(record, plain)
    ordered = sorted(record.engines, key=lambda engine: engine.times_faster or 0.0)
    rows = [["plain", "-", f"{plain:.2f}", "1.00", "-", "-", "-", ""]]
    rows += [_row(engine, plain, peaks) for engine in ordered]
    columns = [
        "engine",
        "ms",
        "times served eager",
        "times plain eager",
        "peak GB",
        "flips",
        "largest score difference",
        "refused because",
    ]
    return {
        "notes": notes,
        "columns": columns,
        "rows": rows,
        "record": record.model_dump(mode="json"),
        "plain_times_faster": plain,
        "peak_bytes": peaks,
    }


def _row(engine: EngineMeasurement, plain: float, peaks: dict[EngineName, int]) -> list[str]:
    parity, times = engine.parity, engine.times_faster
    return [
        engine.name,
        "-" if engine.median_ms is None else _milliseconds(engine.median_ms),
        "-" if times is None else f"{times:.2f}",
        "-" if times is None else f"{times / plain:.2f}",
        f"{peaks[engine.name] / 1e9:.2f}" if engine.name in peaks else "-",
        "-" if parity is None else f"{parity.flips} of {parity.frames}",
        "-" if parity is None else f"{parity.largest_difference:.1e}",
        engine.refusal or "",
    ]


def _milliseconds(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.2f}"


def _goals(record: EngineRecord, plain: float) -> list[str]:
    """Return a sentence for each goal: reached or missed, of engines that may serve."""

    def best(*prefixes: str) -> float:
        speeds = [
            (engine.times_faster or 0.0) / plain
            for engine in record.engines
            if engine.name.startswith(prefixes) and engine.refusal is None
        ]
        return max(speeds, default=0.0)

    found = {
        "the fastest engine of a processor": best("openvino", "onnxruntime"),
        "8 bits": best("openvino-int8"),
    }
    return [
        f"Goal for {name}: {goal:g} times plain eager torch without a flip; "
        + (
            f"{found[name]:.2f}, {'reached' if found[name] >= goal else 'missed'}."
            if found[name]
            else "no such engine passed the gate."
        )
        for name, goal in _GOALS.items()
    ]


def main(arguments: Sequence[str]) -> None:
    """Ask one engine twice about a frame, and print the most memory that was held."""
    bundle, folder, name, height, width = arguments
    record = EngineRecord.model_validate_json((Path(folder) / "engines.json").read_text())
    model = FrozenModel(load_bundle(Path(bundle)), "cpu")
    known = next(engine.name for engine in record.engines if engine.name == name)
    engine: Engine = model.reference
    if known.startswith("torch"):
        engine = engine if known == "torch-fp32" else torch_engine(model, known)
    else:
        engine = load_exported(Path(folder), record, known)
    blank = np.zeros((int(height), int(width)), np.uint8)
    for _ in range(2):
        engine_probabilities(engine, [blank], model.info.preprocessing)
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    peak_kib = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    print(1024 * int(peak_kib))


if __name__ == "__main__":
    main(sys.argv[1:])
