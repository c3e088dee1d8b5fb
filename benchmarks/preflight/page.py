"""The page of results, written from the results file alone."""

from pathlib import Path
from typing import Any

from benchmarks.preflight.results import load

WANTED = 0.15


def write_page(results: Path, page: Path) -> None:
    """Write the page of whatever has been measured."""
    content = load(results)
    parts = [
        (
            "# Preflight against measured peaks\n\n"
            "Written by `python -m benchmarks.preflight` (`runs`, `steps`, `ladder`);"
            " don't edit it.\n"
        )
    ]
    if "runs" in content:
        parts.append(_runs(content["runs"]))
    if "steps" in content:
        parts.append(_steps(content["steps"]))
    if "ladder" in content:
        parts.append(_ladder(content["ladder"]))
    page.write_text("\n".join(parts), encoding="utf-8")


def error(row: dict[str, Any]) -> float:
    """Return by what share of the measured peak the estimate is off; positive is too high."""
    ratio: float = row["estimated_bytes"] / row["measured_bytes"]
    return ratio - 1


def _runs(table: dict[str, Any]) -> str:
    rows = table["rows"]
    lines = [f"{_row(row)} {_phase(row)} |" for row in rows]
    return (
        "## Whole runs\n\n"
        "Each is a program of its own (`python -m training`) that prepares, makes two steps, saves "
        "checkpoints, looks at the calibration frames and evaluates. Estimated: before its first "
        "step. Measured: the peak of its resident set on a CPU (what Python and its libraries hold "
        f"included), of allocated memory on a GPU. {_machine(table)}\n\n"
        "| run | frames | estimated, GiB | measured, GiB | error | peak expected in |\n"
        "|---|---|---|---|---|---|\n" + "\n".join(lines) + f"\n\n{_verdict(rows)}\n"
    )


def _steps(table: dict[str, Any]) -> str:
    lines = [_row(row) for row in table["rows"]]
    return (
        "## Training steps\n\n"
        "Two steps of each configuration on its largest batch, in a process of its own, without "
        "what a run does beside its steps. What Python and its libraries hold is in both numbers, "
        f"and with small frames is the larger part of them. {_machine(table)}\n\n"
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
    reference = {
        frames: next((row.get("measured_s") for row in rows if row["name"] == first), None)
        for frames, first in (("batch 1", "batch 1"), ("batch 2", "batch 2, accumulation"))
    }
    lines = []
    for row in rows:
        base = reference[row["name"][:7]]
        measured = "measured_bytes" in row
        lines.append(
            f"| {row['name']} | {_gib(row['estimated_bytes'])} | "
            + (
                f"{_gib(row['measured_bytes'])} | {error(row):+.0%} | "
                f"{row['measured_s']:.0f} | {row['measured_s'] / base:.2f} |"
                if measured and base
                else "not measured | | | |"
            )
        )
    return (
        "## A step at 2500x2000 with each step down\n\n"
        "U-Net, ResNet-18, batch normalization, one step a cell in a program of its own, after dry "
        "steps at small sizes. Times are of a shared machine and of single steps: read the ratio, "
        "which is to `batch 1` and to `batch 2, accumulation`. Cells that are estimated above what "
        "one program may take here, or that took longer than the machine was ours, are not "
        f"measured. {_machine(table)}\n\n"
        "| cell | estimated, GiB | measured, GiB | error | seconds | ratio |\n"
        "|---|---|---|---|---|---|\n" + "\n".join(lines) + "\n"
    )


def _phase(row: dict[str, Any]) -> str:
    phases: dict[str, int] = row["phase_bytes"]
    return max(phases, key=lambda name: phases[name]).replace("_", " ")


def _machine(table: dict[str, Any]) -> str:
    machine = table["machine"]
    return f"{machine['device']}, {machine['threads']} threads, torch {machine['torch']}."


def _gib(amount: int) -> str:
    return f"{amount / 1024**3:.2f}"
