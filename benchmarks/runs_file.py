"""A file of finished runs: written whole after every run, so that a benchmark can be cut short."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class StaleResultsError(Exception):
    """The file holds a run of another protocol, so its numbers cannot stand beside new ones."""


class RunsFile:
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

    def open(self, machine: dict[str, Any], command: str, left_out: dict[str, str]) -> None:
        """Note an invocation."""
        with self.changed() as contents:
            for name, value in (("machines", machine), ("commands", command)):
                if value not in contents[name]:
                    contents[name].append(value)
            contents["left_out"] = left_out

    def add_entry(self, key: str, entry: dict[str, Any], machine: dict[str, Any]) -> None:
        """Add a run's entry with the number of its machine; one that is there already stays."""
        with self.changed() as contents:
            numbered = {**entry, "machine": contents["machines"].index(machine)}
            contents["runs"].setdefault(key, numbered)

    @contextmanager
    def changed(self) -> Iterator[dict[str, Any]]:
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
