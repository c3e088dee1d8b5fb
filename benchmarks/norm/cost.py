"""Time and memory of a training step against nn.BatchNorm2d's, measured in the same run.

``python -m benchmarks.norm cost`` trains the convolutional part of torchvision's ResNet-50, once
for each contestant, and takes turns: a step of one, a step of the next, and around again. A round's
ratios to batch normalization in the same round hold what the machine did meanwhile. A contestant
with a window is measured with the window full. About 10 GB of memory for the longest windows, and
as much for a whole frame.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
import torchvision
from torch import Tensor, nn

from benchmarks.norm.cost_contestants import (
    BASELINE,
    CONTESTANTS,
    Contestant,
    Entrant,
    convolution_weight_bytes,
    held_bytes,
    history_bytes,
    resnet50_body,
)
from benchmarks.norm.cost_report import write_report
from benchmarks.norm.processor import processor_name
from benchmarks.quartiles import quartiles
from norm import OptionError

RESULTS = Path("docs/benchmarks/norm-cost.json")
SMALL_MAP_RESULTS = Path("docs/benchmarks/norm-cost-small-maps.json")
QUICK_RESULTS = Path("benchmark-results/norm-cost-quick.json")
# The weights hardly move, so every contestant meets the same activations for as long as it runs.
LEARNING_RATE = 1e-4
# What a window holds does not depend on the size of the image, so small ones fill it quickly.
FILLING_SIDE_PX = 64
SETTLING_SIDE_PX = 32
MIN_ROUNDS = 3
MAX_ROUNDS = 21


Entry = Literal["all", "windows", "served", "small maps"]
# What the service offers for frames of five megapixels; the whole field would take an hour there.
SERVED = (BASELINE, "brn", "cbn")
# Where reading a window weighs most, what it is read as decides.
SMALL_MAPS = (*SERVED, "cbn slope_positions=64", "cbn slope_rank=4", "cbn slope_rank=8")


@dataclass(frozen=True)
class Cell:
    """One measurement: where, how precisely, on inputs of which size, and who takes part.

    Entry "windows" is for contestants with a window, "served" for `SERVED`, "small maps" for
    `SMALL_MAPS`; batch normalization takes part in each.
    """

    device: str
    precision: str
    window_size: int
    batch: int
    height_px: int
    width_px: int
    entry: Entry = "all"

    @property
    def channels_last(self) -> bool:
        """Whether the memory format is the one that a GPU's 16-bit convolutions want."""
        return self.device == "cuda" and self.precision == "bfloat16"

    @property
    def models_key(self) -> tuple[str, str, int, Entry]:
        """Return what two cells must have in common to be measured with the same models."""
        return self.device, self.precision, self.window_size, self.entry

    def admits(self, contestant: Contestant) -> bool:
        """Say whether a contestant takes part."""
        if self.entry == "served":
            return contestant.name in SERVED
        if self.entry == "small maps":
            return contestant.name in SMALL_MAPS
        return self.entry == "all" or contestant.has_window or contestant.name == BASELINE


def planned_cells(device: str, *, quick: bool) -> list[Cell]:
    """Return what is measured on a device: sizes and batches at one window, then other windows.

    The whole product of windows, sizes and batches would take an hour on two cores; the window
    changes what is remembered and not what is convolved, so each axis is walked alone.
    """
    if quick:
        return [Cell(device, precision, 3, 1, 64, 64) for precision in ("float32", "bfloat16")]
    if device == "cuda":
        return _gpu_cells()
    sides = (224, 448)
    cells = [Cell(device, "float32", 8, batch, px, px) for px in sides for batch in (1, 2, 4)]
    cells += [Cell(device, "bfloat16", 8, 2, px, px) for px in sides]
    cells.append(Cell(device, "float32", 8, 1, 2000, 2500, entry="served"))
    cells += [Cell(device, "float32", k, 2, 224, 224, entry="windows") for k in (2, 4, 16)]
    return cells


def _gpu_cells() -> list[Cell]:
    """Return what is measured on a GPU, whole frames first: it may be lent for minutes."""
    images = [(2, 2000, 2500), (1, 2000, 2500), (2, 448, 448), (1, 224, 224)]
    cells = [Cell("cuda", "bfloat16", 8, *image) for image in images]
    cells += [Cell("cuda", "bfloat16", k, 2, 448, 448, entry="served") for k in (2, 4, 16)]
    return [*cells, Cell("cuda", "float32", 8, 2, 448, 448, entry="served")]


def small_map_cells(device: str) -> list[Cell]:
    """Return the cells where a window weighs most against a short step, for `SMALL_MAPS` alone."""
    images = [("float32", batch, 224) for batch in (1, 2, 4)]
    images += [("float32", 1, 448), ("bfloat16", 1, 448), ("bfloat16", 2, 448)]
    return [
        Cell(device, precision, 8, batch, px, px, entry="small maps")
        for precision, batch, px in images
    ]


def entrants(
    contestants: Sequence[Contestant],
    cell: Cell,
    build_body: Callable[[], nn.Module],
    absent: dict[str, str],
) -> list[Entrant]:
    """Build a model for each contestant, and fill its window or let its memory come to rest.

    Side effect: a contestant whose options `norm` does not know is left out, and `absent` says why.

    Raises:
        RuntimeError: A contestant could not replace every batch normalization, so that its time
            would be no fair comparison.
    """
    entered = []
    example = torch.zeros(1, 3, FILLING_SIDE_PX, FILLING_SIDE_PX)
    for contestant in contestants:
        try:
            body, report = contestant.convert(build_body(), example, cell.window_size)
        except OptionError as error:
            absent[contestant.name] = str(error)
            continue
        if report.left:
            raise RuntimeError(f"{contestant.name} left {report.left[0]}; choose another network")
        body = body.train().to(cell.device)
        if cell.channels_last:
            body = body.to(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(body.parameters(), lr=LEARNING_RATE)
        entrant = Entrant(contestant.name, body, optimizer, cell.precision)
        for _ in range(cell.window_size if contestant.has_window else 0):
            entrant.step(_images(cell, FILLING_SIDE_PX, FILLING_SIDE_PX))
        if not contestant.has_window:
            # With a window it takes up to a minute, and comes to rest where "brn" does.
            entrant.settle(_images(replace(cell, batch=2), SETTLING_SIDE_PX, SETTLING_SIDE_PX))
        entered.append(entrant)
    return entered


def _images(cell: Cell, height_px: int, width_px: int) -> Tensor:
    x = torch.randn(cell.batch, 3, height_px, width_px, device=cell.device)
    return x.to(memory_format=torch.channels_last) if cell.channels_last else x


def measure(cell: Cell, entered: Sequence[Entrant], *, cell_seconds: float) -> dict[str, Any]:
    """Return times, memory and the number of rounds of one cell.

    Rounds go on for `cell_seconds`, but for at least `MIN_ROUNDS` and at most `MAX_ROUNDS`.
    """
    x = _images(cell, cell.height_px, cell.width_px)
    finite = {entrant.name: bool(entrant.step(x).isfinite()) for entrant in entered}
    peaks = {entrant.name: _peak_bytes(entrant, x) for entrant in entered}
    seconds: dict[str, list[float]] = {entrant.name: [] for entrant in entered}
    cpu_seconds: dict[str, list[float]] = {entrant.name: [] for entrant in entered}
    start = time.perf_counter()
    rounds = 0
    while rounds < MIN_ROUNDS or (
        rounds < MAX_ROUNDS and time.perf_counter() - start < cell_seconds
    ):
        # Every second round runs backwards, so that nobody always follows the same neighbour.
        for entrant in entered if rounds % 2 == 0 else reversed(entered):
            wall, cpu = _timed_step(entrant, x)
            seconds[entrant.name].append(wall)
            cpu_seconds[entrant.name].append(cpu)
        rounds += 1
    kept = {entrant.name: history_bytes(entrant.body) for entrant in entered}
    held = {entrant.name: held_bytes(entrant.body) for entrant in entered}
    rows = {
        name: {
            "seconds": median(times),
            "ratio": _ratios(times, seconds[BASELINE]),
            "cpu_ratio": _ratios(cpu_seconds[name], cpu_seconds[BASELINE]),
            "extra_kept_bytes": kept[name] - kept[BASELINE],
            "held_beside_bytes": held[name] - kept[name],
            "extra_peak_bytes": _extra_peak(peaks, held, name),
            "loss_is_finite": finite[name],
        }
        for name, times in seconds.items()
    }
    unit = convolution_weight_bytes(entered[0].body)
    return {**asdict(cell), "rounds": rounds, "weight_bytes": unit, "contestants": rows}


def _ratios(times: Sequence[float], baseline: Sequence[float]) -> dict[str, float]:
    return quartiles([a / b for a, b in zip(times, baseline, strict=True)])


def _timed_step(entrant: Entrant, x: Tensor) -> tuple[float, float]:
    """Return the seconds of a step, and those that this process's threads computed in it."""
    _wait_for(x.device)
    start, cpu_start = time.perf_counter(), time.process_time()
    entrant.step(x)
    _wait_for(x.device)
    return time.perf_counter() - start, time.process_time() - cpu_start


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak_bytes(entrant: Entrant, x: Tensor) -> int | None:
    """Return what a step holds at its peak beyond what it found, or None where nobody counts."""
    if x.device.type != "cuda":
        return None
    entrant.optimizer.zero_grad(set_to_none=True)
    torch.cuda.reset_peak_memory_stats(x.device)
    before = torch.cuda.memory_allocated(x.device)
    entrant.step(x)
    return torch.cuda.max_memory_allocated(x.device) - before


def _extra_peak(peaks: dict[str, int | None], held: dict[str, int], name: str) -> int | None:
    own, baseline = peaks[name], peaks[BASELINE]
    if own is None or baseline is None:
        return None
    return own - baseline + held[name] - held[BASELINE]


def measure_all(
    cells: Sequence[Cell],
    *,
    cell_seconds: float,
    absent: dict[str, str],
    contestants: Sequence[Contestant] = CONTESTANTS,
    build_body: Callable[[], nn.Module] = resnet50_body,
) -> Iterator[dict[str, Any]]:
    """Measure cell after cell; neighbours with one window and precision share their models."""
    for _, group in groupby(cells, key=lambda cell: cell.models_key):
        together = list(group)
        first = together[0]
        taking_part = [contestant for contestant in contestants if first.admits(contestant)]
        entered = entrants(taking_part, first, build_body, absent)
        for cell in together:
            yield measure(cell, entered, cell_seconds=cell_seconds)


def machine(device: str) -> dict[str, Any]:
    """Describe what the numbers come from."""
    return {
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "load_average_before": round(os.getloadavg()[0], 2),
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's arguments."""
    parser.add_argument("--results", type=Path, help=f"JSON file (default {RESULTS})")
    parser.add_argument(
        "--quick", action="store_true", help=f"small images, few rounds, into {QUICK_RESULTS}"
    )
    parser.add_argument(
        "--small-maps",
        action="store_true",
        help=f"whole and factored slopes on small maps alone, into {SMALL_MAP_RESULTS}",
    )
    parser.add_argument(
        "--report-only", action="store_true", help="write table and plot from the JSON file"
    )
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        action="append",
        help="measure here alone (default: the CPU, and a GPU where there is one)",
    )
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    parser.add_argument("--cell-seconds", type=float, default=30.0, help="time for a cell's rounds")


def run(arguments: argparse.Namespace) -> int:
    """Measure, write JSON, table and plot; return the exit status."""
    usual = QUICK_RESULTS if arguments.quick else RESULTS
    results: Path = arguments.results or (SMALL_MAP_RESULTS if arguments.small_maps else usual)
    if not arguments.report_only:
        if arguments.threads:
            torch.set_num_threads(arguments.threads)
        devices = arguments.device or ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
        for device in devices:
            _run_on(device, results, arguments)
    try:
        print(f"wrote {write_report(results)}")
    except (FileNotFoundError, ModuleNotFoundError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _run_on(device: str, results: Path, arguments: argparse.Namespace) -> None:
    """Measure on one device and put it in the results in place of the device's last run."""
    small = arguments.small_maps
    cells = small_map_cells(device) if small else planned_cells(device, quick=arguments.quick)
    absent: dict[str, str] = {}
    measured: list[dict[str, Any]] = []
    record = {
        "machine": machine(device),
        "quick": arguments.quick,
        "planned_cells": len(cells),
        "absent": absent,
        "cells": measured,
    }
    seconds = 0.0 if arguments.quick else arguments.cell_seconds
    start = time.perf_counter()
    for cell in measure_all(cells, cell_seconds=seconds, absent=absent):
        measured.append(cell)
        record["minutes"] = round((time.perf_counter() - start) / 60, 1)
        # Written after each cell: an interrupted run keeps what it has measured.
        _put_run(results, device, record)
        print(_progress(cell), flush=True)


def _progress(cell: dict[str, Any]) -> str:
    ratios = {name: round(row["ratio"]["median"], 2) for name, row in cell["contestants"].items()}
    where = f"{cell['device']} {cell['precision']} k={cell['window_size']}"
    return f"{where} {cell['height_px']}x{cell['width_px']} batch {cell['batch']}: {ratios}"


def _put_run(path: Path, device: str, record: dict[str, Any]) -> None:
    results = json.loads(path.read_text()) if path.exists() else {"runs": {}}
    results["runs"][device] = record
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(results, indent=1) + "\n")
    temporary.replace(path)
