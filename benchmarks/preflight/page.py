"""The page of results, written from the results files alone."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.preflight.results import load

WANTED = 0.15


def write_page(results: Sequence[Path], page: Path) -> None:
    """Write the page of whatever has been measured, each kind of machine in a file of its own."""
    contents = [load(path) for path in results]
    parts = [
        (
            "# Preflight against measured peaks\n\n"
            "Written by `python -m benchmarks.preflight` (`runs`, `steps`, `ladder`);"
            " don't edit it.\n"
        )
    ]
    for name, (text, table) in _SECTIONS.items():
        measured = [content[name] for content in contents if name in content]
        if measured:
            parts += [text, *(table(each) for each in measured)]
    page.write_text("\n".join(parts), encoding="utf-8")


def error(row: dict[str, Any]) -> float:
    """Return by what share of the measured peak the estimate is off; positive is too high."""
    ratio: float = row["estimated_bytes"] / row["measured_bytes"]
    return ratio - 1


_RUNS_TEXT = (
    "## Whole runs\n\n"
    "Each is a program of its own (`python -m training`) that prepares, makes two steps, saves "
    "checkpoints, looks at the calibration frames and evaluates. Estimated: before its first "
    "step. Measured: the peak of its resident set on a CPU (what Python and its libraries hold "
    "included), of allocated memory on a GPU. Precision is a job's own where no other is named: "
    "float32 on a CPU, bfloat16 on a GPU that knows it.\n"
)
_STEPS_TEXT = (
    "## Training steps\n\n"
    "Some steps of each configuration on its largest batch, in a process of its own, without "
    "what a run does beside its steps. On a CPU what Python and its libraries hold is in both "
    "numbers, and with small frames is the larger part of them.\n"
)
_LADDER_TEXT = (
    "## A step at 2500x2000 with each step down\n\n"
    "U-Net, ResNet-18, float32 and batch normalization unless another is named. On a CPU a cell is "
    "one step in a program of its own, after dry steps at small sizes, on a shared machine: read "
    "the ratio. On a GPU seconds are the median of several steps after others that warm up, the "
    "copy to the GPU included. The ratio is to the same batch without a step down, or, where that "
    "was not measured, to its accumulation. Cells that are estimated above what one program may "
    "take here, or that took longer than the machine was ours, are not measured.\n"
)


def _runs(table: dict[str, Any]) -> str:
    rows = table["rows"]
    lines = [f"{_row(row)} {_phase(row)} |" for row in rows]
    return (
        f"{_machine(table)}\n\n"
        "| run | frames | estimated, GiB | measured, GiB | error | peak expected in |\n"
        "|---|---|---|---|---|---|\n" + "\n".join(lines) + f"\n\n{_verdict(rows)}\n"
    )


def _steps(table: dict[str, Any]) -> str:
    lines = [_row(row) for row in table["rows"]]
    return (
        f"{_machine(table)}\n\n"
        "| steps | frames | estimated, GiB | measured, GiB | error |\n"
        "|---|---|---|---|---|\n" + "\n".join(lines) + f"\n\n{_verdict(table['rows'])}\n"
    )


def _row(row: dict[str, Any]) -> str:
    return (
        f"| {row['name']} | {row['frame']} | {_gib(row['estimated_bytes'])} | "
        f"{_gib(row['measured_bytes'])} | {error(row):+.0%} |"
    )


def _verdict(rows: list[dict[str, Any]]) -> str:
    off = [row["name"] for row in rows if abs(error(row)) > WANTED]
    largest = max((abs(error(row)) for row in rows), default=0.0)
    if off:
        return f"**{len(off)} of {len(rows)} are off by more than {WANTED:.0%}: {'; '.join(off)}.**"
    return f"{len(rows)} of {len(rows)} within {WANTED:.0%}; the largest error is {largest:.0%}."


def _ladder(table: dict[str, Any]) -> str:
    rows = table["rows"]
    seconds = {row["name"]: row["measured_s"] for row in rows if "measured_s" in row}
    lines = []
    for row in rows:
        frames = row["name"][:7]
        base = seconds.get(frames, seconds.get(f"{frames}, accumulation"))
        measured = "measured_bytes" in row
        lines.append(
            f"| {row['name']} | {_gib(row['estimated_bytes'])} | "
            + (
                f"{_gib(row['measured_bytes'])} | {error(row):+.0%} | "
                f"{_seconds(row['measured_s'])} | {row['measured_s'] / base:.2f} |"
                if measured and base
                else "not measured | | | |"
            )
        )
    return (
        f"{_machine(table)}\n\n"
        "| cell | estimated, GiB | measured, GiB | error | seconds | ratio |\n"
        "|---|---|---|---|---|---|\n" + "\n".join(lines) + "\n"
    )


def _seconds(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.3f}"


def _phase(row: dict[str, Any]) -> str:
    phases: dict[str, int] = row["phase_bytes"]
    return max(phases, key=lambda name: phases[name]).replace("_", " ")


def _machine(table: dict[str, Any]) -> str:
    machine = table["machine"]
    return f"{machine['device']}, {machine['threads']} threads, torch {machine['torch']}."


def _gib(amount: int) -> str:
    return f"{amount / 1024**3:.2f}"


_SECTIONS: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "runs": (_RUNS_TEXT, _runs),
    "steps": (_STEPS_TEXT, _steps),
    "ladder": (_LADDER_TEXT, _ladder),
}
