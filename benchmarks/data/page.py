"""The page of the data room's speeds: a section a benchmark, written from one file of results."""

import argparse
import json
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.norm.processor import processor_name

RESULTS = Path("docs/benchmarks/data.json")
QUICK_RESULTS = Path("benchmark-results/data-quick.json")
TITLES = {
    "import": "Taking frames in",
    "decode": "Decoding and augmentation",
    "listing": "A small and a large data set",
}
_HEAD = """# The data room's speed

Written by `make benchmark-data` (`python -m benchmarks.data all`). Each ratio compares two things
that took turns in one run, after a warm-up; median, and in brackets the quartiles. Times alone hold
for the machine and its load."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that every benchmark of the page takes."""
    parser.add_argument("--results", type=Path, help=f"JSON file (default {RESULTS})")
    parser.add_argument("--quick", action="store_true", help=f"small and few, into {QUICK_RESULTS}")


def record(
    name: str, arguments: argparse.Namespace, measure: Callable[[bool], dict[str, Any]]
) -> int:
    """Measure, put the results in place of the last ones of this benchmark, and write the page."""
    path: Path = arguments.results or (QUICK_RESULTS if arguments.quick else RESULTS)
    load_before = os.getloadavg()[0]
    measured = measure(arguments.quick)
    measured["command"] = shlex.join(
        ["python", "-m", "benchmarks.data", name, *(["--quick"] if arguments.quick else [])]
    )
    measured["machine"] = {
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "load_before": round(load_before, 2),
        "load_after": round(os.getloadavg()[0], 2),
    }
    results = json.loads(path.read_text()) if path.exists() else {}
    results[name] = measured
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_suffix(".partial")
    written.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    written.replace(path)
    page = path.with_suffix(".md")
    page.write_text(render(results))
    print(f"wrote {page}")
    return 0


def render(results: dict[str, Any]) -> str:
    """Return the page; a benchmark without results is named as not measured."""
    parts = [_HEAD]
    for name, title in TITLES.items():
        parts.append(f"## {title}")
        section = results.get(name)
        if section is None:
            parts.append(f"Not measured; `python -m benchmarks.data {name}` does it.")
            continue
        machine = section["machine"]
        parts.append(
            f"`{section['command']}` on {machine['processor']}, {machine['cores']} cores; load "
            f"average {machine['load_before']} before and {machine['load_after']} after."
        )
        parts += section["notes"]
        parts.append(_table(section["columns"], section["rows"]))
    return "\n\n".join(parts) + "\n"


def spread(values: dict[str, float], form: str = ".2f") -> str:
    """Return a median with its quartiles in brackets."""
    low, middle, high = (format(values[name], form) for name in ("low", "median", "high"))
    return f"{middle} ({low} to {high})"


def _table(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---"] + ["---:"] * (len(columns) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
