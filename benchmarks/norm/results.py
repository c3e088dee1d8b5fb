"""The accuracy benchmark's results: one entry a run, see `benchmarks.runs_file`."""

import os
import platform
from dataclasses import asdict
from typing import Any

import torch

from benchmarks.norm.processor import processor_name
from benchmarks.norm.protocol import Cell, Run
from benchmarks.runs_file import RunsFile, StaleResultsError

__all__ = ["ResultsFile", "StaleResultsError", "describe_machine", "run_of"]


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


class ResultsFile(RunsFile):
    """Runs of the accuracy benchmark in one JSON file."""

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

    def add(self, run: Run, outcome: dict[str, Any], machine: dict[str, Any]) -> None:
        """Add a run's outcome; an entry that is there already stays."""
        entry = {
            "cell": asdict(run.cell),
            "seed": run.seed,
            "base_lr": run.base_lr,
            "configuration": run.configuration,
            **outcome,
        }
        self.add_entry(run.key, entry, machine)
