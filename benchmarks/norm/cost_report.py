"""Tables and a plot of what a training step costs, from the results file of `cost`."""

import json
from collections.abc import Callable, Iterable, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

BASELINE = "bn"
# Okabe and Ito's colours can be told apart by colour-blind readers, and the markers in print.
STYLES = (
    ("#000000", "o"),
    ("#E69F00", "s"),
    ("#56B4E9", "^"),
    ("#009E73", "v"),
    ("#0072B2", "D"),
    ("#D55E00", "P"),
    ("#CC79A7", "X"),
    ("#8C6D31", "*"),
)
_INTRODUCTION = (
    "A training step (forward, backward, SGD) of torchvision's ResNet-50 up to layer4, relative to "
    "the same step with `nn.BatchNorm2d`. Contestants take turns, and each round's ratio is to "
    "batch normalization in that round: the tables give the median ratio and, in brackets, the "
    "quartiles. Windows were full. `cbn` has the defaults of `CrossIterationBatchNorm2d`; "
    "`transcription` is the paper's equations as published code computes them "
    "(`benchmarks/norm/transcription.py`). bfloat16 is autocast, on a GPU with channels last."
)
_NO_GPU = (
    "Not measured: the results hold no run on a machine with a GPU. There the benchmark also takes "
    "frames of 2500x2000 in bfloat16 and counts the peak of allocated memory."
)
_CPU_TIME = (
    "The same steps by the time that all threads of the process computed, which other work on the "
    "machine lengthens less than the time that passes."
)
Run = dict[str, Any]
MeasuredCell = dict[str, Any]
Styles = dict[str, tuple[str, str]]


def write_report(results: Path) -> Path:
    """Write the table (.md) and the plot (.png) beside a results file and return the table's path.

    Raises:
        FileNotFoundError: There are no results yet.
        ModuleNotFoundError: matplotlib is not installed; the table is written all the same.
    """
    if not results.is_file():
        raise FileNotFoundError(f"{results} is not there; run the benchmark without --report-only")
    runs: dict[str, Run] = json.loads(results.read_text())["runs"]
    table, plot = results.with_suffix(".md"), results.with_suffix(".png")
    table.write_text(render(runs, results_name=results.name, plot_name=plot.name))
    draw(runs, plot)
    return table


def render(runs: dict[str, Run], *, results_name: str, plot_name: str) -> str:
    """Return the whole report as markdown."""
    small_maps = all(c["entry"] == "small maps" for run in runs.values() for c in run["cells"])
    command = "python -m benchmarks.norm cost" + (" --small-maps" if small_maps else "")
    lines = [
        "# What a training step costs" + (" on small maps" if small_maps else ""),
        "",
        "```sh",
        f"{command}                # measure, then write this page",
        f"{command} --report-only  # write this page again from the numbers",
        "```",
        "",
        f"{_INTRODUCTION} The numbers are in `{results_name}`.",
        "",
        f"![Step time and memory of each normalization]({plot_name})",
    ]
    for device, run in runs.items():
        lines += ["", *_device_section(device, run)]
    if "cuda" not in runs:
        lines += ["", "## GPU", "", _NO_GPU]
    return "\n".join(lines) + "\n"


def _device_section(device: str, run: Run) -> list[str]:
    lines = [f"## {'GPU' if device == 'cuda' else 'CPU'}", "", _provenance(run)]
    for note in _notes(run):
        lines += ["", note]
    main_window = _main_window(run)
    for precision in _unique(cell["precision"] for cell in run["cells"]):
        cells = _cells(run, precision=precision, window_size=main_window)
        if cells:
            title = f"Step time by image and batch, {precision}, window {main_window}"
            lines += ["", f"### {title}", "", *_table(cells, _image, _ratio)]
            times = ", ".join(f"{_image(c)}: {_milliseconds(c)}" for c in cells)
            lines += ["", f"A step with batch normalization took {times}."]
        if device == "cpu" and cells and _has_cpu_ratios(cells):
            lines += ["", f"### Processor time, {precision}, window {main_window}", "", _CPU_TIME]
            lines += ["", *_table(cells, _image, _cpu_ratio)]
    by_window = _by_window(run)
    if len(by_window) > 1:
        lines += ["", f"### Step time by window, {_image(by_window[0])}", ""]
        lines += _table(by_window, _window, _ratio)
    if by_window:
        lines += ["", "### What is kept between steps", "", _memory_note(by_window[0], run), ""]
        lines += _table(by_window, _window, _kept)
    peaks = [cell for cell in run["cells"] if _has_peak(cell)]
    if peaks:
        lines += ["", "### Peak memory beyond batch normalization's", ""]
        lines += _table(peaks, _precise_image, _peak)
    return lines


def _provenance(run: Run) -> str:
    machine = run["machine"]
    parts = [
        machine["gpu"] or machine["processor"],
        f"{machine['cores']} cores, {machine['threads']} threads",
        f"PyTorch {machine['torch']}, torchvision {machine['torchvision']}",
        f"load average {machine['load_average_before']} before the run",
        f"{run['minutes']} minutes",
    ]
    rounds = [cell["rounds"] for cell in run["cells"]]
    return f"{'; '.join(parts)}; {min(rounds)} to {max(rounds)} rounds a cell."


def _notes(run: Run) -> list[str]:
    """Say what a reader must know before trusting the numbers."""
    notes = []
    if run["quick"]:
        notes.append("**A quick run, to try the benchmark: no numbers to quote.**")
    missing = run["planned_cells"] - len(run["cells"])
    if missing:
        notes.append(
            f"**The run was interrupted: {missing} of {run['planned_cells']} cells miss.**"
        )
    if run["machine"]["load_average_before"] > 0.5:
        notes.append("**The machine was not idle when the run began.**")
        if _has_cpu_ratios(run["cells"]):
            notes.append("Read the processor time of such a run, and not the time that passed.")
    notes += [f"Left out: `{name}`, because {why}." for name, why in run["absent"].items()]
    for cell in run["cells"]:
        wrong = [name for name, row in cell["contestants"].items() if not row["loss_is_finite"]]
        if wrong:
            notes.append(f"At {_precise_image(cell)} the loss was not finite for {wrong}.")
    return notes


def _memory_note(cell: MeasuredCell, run: Run) -> str:
    note = (
        "Buffers and, for the transcription, the tensors in its lists, beyond those of batch "
        "normalization: an exact count. In brackets the same as a multiple of (window - 1) "
        "float32 copies of every convolution's weight, "
        f"{_megabytes(cell['weight_bytes'])} each. On a CPU the peak of a step is not given: the "
        "resident size of the process depends on the allocator more than on the contestant."
    )
    beside = run["cells"][0]["contestants"].get("brn", {"held_beside_bytes": 0})
    if beside["held_beside_bytes"] >= 1e6:
        note += (
            f" Beside this `brn` comes to hold {_megabytes(beside['held_beside_bytes'])}, and so "
            "does each `cbn`: statistics of recent passes, for activation checkpointing."
        )
    return note


def _table(
    cells: Sequence[MeasuredCell],
    heading: Callable[[MeasuredCell], str],
    entry: Callable[[MeasuredCell, str], str],
) -> list[str]:
    lines = [
        "| | " + " | ".join(heading(cell) for cell in cells) + " |",
        "|---" + "|---:" * len(cells) + "|",
    ]
    for name in _challengers(cells):
        entries = [entry(cell, name) if name in cell["contestants"] else "" for cell in cells]
        lines.append(f"| {name} | " + " | ".join(entries) + " |")
    return lines


def _ratio(cell: MeasuredCell, name: str) -> str:
    ratio = cell["contestants"][name]["ratio"]
    return f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"


def _cpu_ratio(cell: MeasuredCell, name: str) -> str:
    ratio = cell["contestants"][name]["cpu_ratio"]
    return f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"


def _has_cpu_ratios(cells: Iterable[MeasuredCell]) -> bool:
    return all("cpu_ratio" in row for cell in cells for row in cell["contestants"].values())


def _kept(cell: MeasuredCell, name: str) -> str:
    extra = cell["contestants"][name]["extra_kept_bytes"]
    unit = (cell["window_size"] - 1) * cell["weight_bytes"]
    return f"{_megabytes(extra)} ({extra / unit:.2f})"


def _peak(cell: MeasuredCell, name: str) -> str:
    return _megabytes(cell["contestants"][name]["extra_peak_bytes"])


def _has_peak(cell: MeasuredCell) -> bool:
    return cell["contestants"][BASELINE]["extra_peak_bytes"] is not None


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.0f} MB" if abs(count) >= 1e6 else f"{count / 1e6:.2f} MB"


def _milliseconds(cell: MeasuredCell) -> str:
    return f"{cell['contestants'][BASELINE]['seconds'] * 1e3:,.0f} ms"


def _image(cell: MeasuredCell) -> str:
    return f"{cell['width_px']}x{cell['height_px']}, batch {cell['batch']}"


def _precise_image(cell: MeasuredCell) -> str:
    return f"{_image(cell)}, {cell['precision']}, window {cell['window_size']}"


def _window(cell: MeasuredCell) -> str:
    return f"window {cell['window_size']}"


def _image_in_two_lines(cell: MeasuredCell) -> str:
    return _image(cell).replace(", ", "\n")


def _challengers(cells: Iterable[MeasuredCell]) -> list[str]:
    return _unique(name for cell in cells for name in cell["contestants"] if name != BASELINE)


def _unique(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


def _main_window(run: Run) -> int:
    """Return the window that sizes and batches were walked at, which is the first measured."""
    return int(run["cells"][0]["window_size"])


def _cells(run: Run, **wanted: Any) -> list[MeasuredCell]:
    return [cell for cell in run["cells"] if all(cell[key] == wanted[key] for key in wanted)]


def _by_window(run: Run) -> list[MeasuredCell]:
    """Return the cells that differ in their window alone, shortest window first."""
    others = [cell for cell in run["cells"] if cell["entry"] == "windows"]
    like = others[0] if others else run["cells"][0]
    wanted = {key: like[key] for key in ("precision", "batch", "height_px", "width_px")}
    return sorted(_cells(run, **wanted), key=lambda cell: int(cell["window_size"]))


def draw(runs: dict[str, Run], path: Path) -> None:
    """Draw step time by image and by window, and kept memory by window, a row a device.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{path} needs matplotlib, which is not installed: pip install matplotlib"
        ) from error
    figure = Figure(figsize=(17, 5 * len(runs)), layout="constrained")
    FigureCanvasAgg(figure)
    # Images have the longest labels.
    axes = figure.subplots(len(runs), 3, squeeze=False, width_ratios=(1.7, 1, 1))
    cells = [cell for run in runs.values() for cell in run["cells"]]
    styles = dict(zip(_challengers(cells), cycle(STYLES), strict=False))
    for row, (device, run) in zip(axes, runs.items(), strict=True):
        by_image = _cells(run, precision="float32", window_size=_main_window(run))
        by_window = _by_window(run)
        where = "GPU" if device == "cuda" else "CPU"
        # Images are no scale, so no line joins them.
        _draw_ratios(row[0], by_image, _image_in_two_lines, styles, joined=False)
        row[0].set(title=f"{where}, window {_main_window(run)}", xlabel="image and batch")
        _draw_ratios(row[1], by_window, lambda cell: str(cell["window_size"]), styles)
        row[1].set(title=f"{where}, {_image(by_window[0])}", xlabel="window")
        _draw_kept(row[2], by_window, styles)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=80)


def _draw_ratios(
    axis: Any,
    cells: Sequence[MeasuredCell],
    label: Callable[[MeasuredCell], str],
    styles: Styles,
    *,
    joined: bool = True,
) -> None:
    names = _challengers(cells)
    for index, name in enumerate(names):
        colour, marker = styles[name]
        places = [place for place, cell in enumerate(cells) if name in cell["contestants"]]
        ratios = [cells[place]["contestants"][name]["ratio"] for place in places]
        # Side by side, so that the quartiles of one do not hide another's.
        shifted = [place + 0.06 * (index - len(names) / 2) for place in places]
        errors = [
            [ratio["median"] - ratio["low"] for ratio in ratios],
            [ratio["high"] - ratio["median"] for ratio in ratios],
        ]
        axis.errorbar(
            shifted,
            [ratio["median"] for ratio in ratios],
            errors,
            label=name,
            color=colour,
            marker=marker,
            linewidth=1,
            linestyle="-" if joined else "none",
        )
    axis.axhline(1, color="grey", linewidth=0.8)
    axis.set_xticks(range(len(cells)), [label(cell) for cell in cells])
    axis.set_ylabel("step time / batch normalization's")


def _draw_kept(axis: Any, cells: Sequence[MeasuredCell], styles: Styles) -> None:
    for name in _challengers(cells):
        colour, marker = styles[name]
        points = [
            (place, cell["contestants"][name]["extra_kept_bytes"] / 1e6)
            for place, cell in enumerate(cells)
            if name in cell["contestants"]
        ]
        axis.plot(*zip(*points, strict=True), color=colour, marker=marker, linewidth=1)
    axis.set_xticks(range(len(cells)), [str(cell["window_size"]) for cell in cells])
    axis.set(title="Kept between steps", xlabel="window", ylabel="MB beyond batch normalization's")
