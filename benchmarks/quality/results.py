"""The quality benchmark's results: one entry a run."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.quality.protocol import Cell, Profile, Run
from benchmarks.runs_file import RunsFile, StaleResultsError


class QualityResults(RunsFile):
    """Runs under one profile in one JSON file.

    Args:
        path: The file; it need not exist yet.
        profile: The budget that its runs have.
    """

    def __init__(self, path: Path, profile: Profile) -> None:
        super().__init__(path)
        self._profile = profile

    def runs(self) -> dict[Run, dict[str, Any]]:
        """Return the entries by run.

        Raises:
            StaleResultsError: An entry was made under another protocol.
        """
        entries = {
            Run(Cell(**entry["cell"]), entry["seed"]): entry
            for entry in self.read()["runs"].values()
        }
        for run, entry in entries.items():
            current = run.configuration(self._profile)
            if entry["configuration"] != current:
                raise StaleResultsError(
                    f"{self.path}: {run.key} was run under configuration "
                    f"{entry['configuration']} and the protocol is now {current}; remove the file "
                    "or name another one with --results"
                )
        return entries

    def add(self, run: Run, outcome: dict[str, Any], machine: dict[str, Any]) -> None:
        """Add a run's outcome; an entry that is there already stays."""
        entry = {
            "cell": asdict(run.cell),
            "seed": run.seed,
            "configuration": run.configuration(self._profile),
            **outcome,
        }
        self.add_entry(run.key, entry, machine)

    def note_duration(self, machine: dict[str, Any], *, runs: int, seconds: float) -> None:
        """Note how long an invocation took for so many runs."""
        with self.changed() as contents:
            number = contents["machines"].index(machine)
            took = {"machine": number, "runs": runs, "seconds": round(seconds, 1)}
            contents.setdefault("took", []).append(took)
