"""The results file: one object a table, replaced by the command that measures it."""

import json
import platform
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


def machine() -> dict[str, Any]:
    """Return what the numbers depend on."""
    cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if cuda else f"cpu, {platform.machine()}",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
