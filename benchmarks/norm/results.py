"""The results file: one entry a run, written whole after every run, never overwritten by halves."""

import fcntl
import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.norm.processor import processor_name
from benchmarks.norm.protocol import Cell, Run


class StaleResultsError(Exception):
    """The file holds a run of another protocol, so its numbers cannot stand beside new ones."""


def describe_machine(device: str) -> dict[str, Any]:
    """Return what a reader needs to know of the machine; one thread computes each run."""
    return {
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads_per_run": 1,
    }


def run_of(entry: dict[str, Any]) -> Run:
    """Return the run an entry of the file belongs to."""
    return Run(Cell(**entry["cell"]), entry["seed"], entry["base_lr"])


class ResultsFile:
    """Runs, machines, commands and what was left out, in one JSON file.

    Args:
        path: The file; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[str, Any]:
        """Return the file's contents, or those of an empty one."""
        if not self.path.is_file():
            return {"machines": [], "commands": [], "left_out": {}, "runs": {}}
        contents: dict[str, Any] = json.loads(self.path.read_text())
        return contents

    def runs(self) -> dict[Run, dict[str, Any]]:
        """Return the entries by run.

        Raises:
            StaleResultsError: An entry was made under another protocol.
        """
        entries = {run_of(entry): entry for entry in self.read()["runs"].values()}
        for run, entry in entries.items():
            if entry["configuration"] != run.configuration:
                raise StaleResultsError(
                    f"{self.path}: {run.key} was run under configuration "
                    f"{entry['configuration']} and the protocol is now {run.configuration}; "
                    "remove the file or name another one with --results"
                )
        return entries

    def open(self, machine: dict[str, Any], command: str, left_out: dict[str, str]) -> None:
        """Note an invocation."""
        with self._changed() as contents:
            for name, value in (("machines", machine), ("commands", command)):
                if value not in contents[name]:
                    contents[name].append(value)
            contents["left_out"] = left_out

    def add(self, run: Run, outcome: dict[str, Any], machine: dict[str, Any]) -> None:
        """Add a run's outcome; an entry that is there already stays."""
        with self._changed() as contents:
            entry = {
                "cell": asdict(run.cell),
                "seed": run.seed,
                "base_lr": run.base_lr,
                "configuration": run.configuration,
                "machine": contents["machines"].index(machine),
                **outcome,
            }
            contents["runs"].setdefault(run.key, entry)

    @contextmanager
    def _changed(self) -> Iterator[dict[str, Any]]:
        """Yield the contents and write them back; invocations beside this one wait their turn."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # The folder is locked, not the file: the file is another one after every write.
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            contents = self.read()
            yield contents
            written = self.path.with_suffix(".partial")
            written.write_text(_as_text(contents))
            written.replace(self.path)
        finally:
            os.close(folder)


def _as_text(contents: dict[str, Any]) -> str:
    """Return the contents as JSON with a run a line, so that a change shows the runs it adds."""
    others = {name: value for name, value in contents.items() if name != "runs"}
    runs = ",\n".join(
        f"  {json.dumps(key)}: {json.dumps(run, sort_keys=True)}"
        for key, run in sorted(contents["runs"].items())
    )
    head = json.dumps(others, indent=1, sort_keys=True).removesuffix("\n}")
    return f'{head},\n "runs": {{\n{runs}\n }}\n}}\n'
