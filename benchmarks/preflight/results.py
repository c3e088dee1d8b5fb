"""The results file: one object a table, replaced by the command that measures it."""

import json
import platform
from collections.abc import Container, Iterable
from pathlib import Path
from typing import Any

import torch


def store(path: Path, table: str, rows: list[dict[str, Any]]) -> None:
    """Put a table's rows into the results, beside those of other commands."""
    content = load(path)
    content[table] = {"machine": machine(), "rows": rows}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def load(path: Path) -> dict[str, Any]:
    """Return all results so far."""
    content: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return content


def rows_kept(
    path: Path, table: str, names: Iterable[str], measured_now: Container[str]
) -> dict[str, dict[str, Any]]:
    """Return the rows of a table that stay as they are, by name: known and not measured now."""
    rows = {row["name"]: row for row in load(path).get(table, {}).get("rows", [])}
    return {name: rows[name] for name in names if name in rows and name not in measured_now}


def in_order(rows: dict[str, dict[str, Any]], names: Iterable[str]) -> list[dict[str, Any]]:
    """Return a table's rows in the order of the names."""
    return [rows[name] for name in names if name in rows]


def machine() -> dict[str, Any]:
    """Return what the numbers depend on."""
    cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if cuda else f"cpu, {platform.machine()}",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
