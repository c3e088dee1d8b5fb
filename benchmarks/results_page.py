"""A page with a section a benchmark, written from one file of results beside it."""

import argparse
import json
import os
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.norm.processor import processor_name


@dataclass(frozen=True)
class ResultsPage:
    """Where the sections of one program's benchmarks are kept and shown.

    Each benchmark measures ``notes``, ``columns`` and ``rows``, and names in ``accelerator`` the
    GPU that it ran on, if any; what else it returns is kept in the results alone.

    Attributes:
        program: ``benchmarks.data``, whose commands are the sections' names.
        results: The JSON file; the page is the Markdown file beside it.
        quick_results: The one of smoke runs.
        head: What the page begins with.
        titles: Of the sections by their names, in the page's order.
    """

    program: str
    results: Path
    quick_results: Path
    head: str
    titles: Mapping[str, str]

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the arguments that every benchmark of the page takes."""
        parser.add_argument("--results", type=Path, help=f"JSON file (default {self.results})")
        parser.add_argument(
            "--quick", action="store_true", help=f"small and few, into {self.quick_results}"
        )

    def record(
        self,
        name: str,
        arguments: argparse.Namespace,
        measure: Callable[[bool], dict[str, Any]],
        options: tuple[str, ...] = (),
    ) -> int:
        """Measure, put the results in place of the last ones of this benchmark, write the page.

        Args:
            name: The section's: the benchmark's command, with the device where that makes another
                section of it.
            arguments: As `add_arguments` made them.
            measure: Is told whether the run is a quick one.
            options: What else the command was given, for the page.
        """
        path: Path = arguments.results or (self.quick_results if arguments.quick else self.results)
        load_before = os.getloadavg()[0]
        measured = measure(arguments.quick)
        quick = ["--quick"] if arguments.quick else []
        command = [self.program, *name.split(), *quick, *options]
        measured["command"] = shlex.join(["python", "-m", *command])
        measured["machine"] = {
            "processor": processor_name(),
            "cores": os.cpu_count(),
            "accelerator": measured.pop("accelerator", None),
            "load_before": round(load_before, 2),
            "load_after": round(os.getloadavg()[0], 2),
        }
        results = json.loads(path.read_text()) if path.exists() else {}
        results[name] = measured
        path.parent.mkdir(parents=True, exist_ok=True)
        written = path.with_suffix(".partial")
        written.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
        written.replace(path)
        self.write(path)
        return 0

    def write(self, path: Path) -> None:
        """Write the page of a file of results, which need not exist."""
        results = json.loads(path.read_text()) if path.exists() else {}
        page = path.with_suffix(".md")
        page.write_text(self.render(results))
        print(f"wrote {page}")

    def render(self, results: dict[str, Any]) -> str:
        """Return the page; a benchmark without results is named as not measured."""
        parts = [self.head]
        for name, title in self.titles.items():
            parts.append(f"## {title}")
            section = results.get(name)
            if section is None:
                parts.append(f"Not measured; `python -m {self.program} {name}` does it.")
                continue
            machine = section["machine"]
            gpu = f"{machine['accelerator']}, " if machine.get("accelerator") else ""
            parts.append(
                f"`{section['command']}` on {gpu}{machine['processor']}, {machine['cores']} cores; "
                f"load average {machine['load_before']} before and {machine['load_after']} after."
            )
            parts += section["notes"]
            parts.append(markdown_table(section["columns"], section["rows"]))
        return "\n\n".join(parts) + "\n"


def spread(values: dict[str, float], form: str = ".2f") -> str:
    """Return a median with its quartiles in brackets."""
    low, middle, high = (format(values[name], form) for name in ("low", "median", "high"))
    return f"{middle} ({low} to {high})"


def markdown_table(columns: list[str], rows: list[list[str]]) -> str:
    """Return a table whose first column is of names and whose others are of numbers."""
    lines = [columns, ["---"] + ["---:"] * (len(columns) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
