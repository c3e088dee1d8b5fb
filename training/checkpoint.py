"""Checkpoints: written whole or not at all, the last two kept, a damaged one recognised.

A file is ``step_00000120.pt`` with its SHA-256 beside it.  It is read with ``weights_only=True``,
so a checkpoint from elsewhere can't run code.
"""

import hashlib
import io
import logging
import os
from pathlib import Path
from typing import Any

import torch

logger = logging.getLogger(__name__)

KEPT = 2
_PATTERN = "step_*.pt"


def save_checkpoint(directory: Path, step: int, state: dict[str, Any]) -> None:
    """Write a checkpoint and remove all but the last two.

    Args:
        directory: It is created if missing.
        step: Optimizer steps taken.
        state: Tensors, numbers, strings and containers of them.
    """
    directory.mkdir(exist_ok=True)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    path = directory / f"step_{step:08d}.pt"
    digest = hashlib.sha256(buffer.getbuffer()).hexdigest()
    # The digest goes first: a checkpoint without one is taken for damaged.
    _write_atomically(path.with_suffix(".sha256"), digest.encode())
    _write_atomically(path, buffer.getbuffer())
    for old in sorted(directory.glob(_PATTERN))[:-KEPT]:
        old.unlink()
        old.with_suffix(".sha256").unlink(missing_ok=True)


def load_latest_checkpoint(directory: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """Return the newest undamaged checkpoint, or None, and the names of damaged ones."""
    damaged: list[str] = []
    for path in sorted(directory.glob(_PATTERN), reverse=True):
        content = path.read_bytes()
        digest_path = path.with_suffix(".sha256")
        expected = digest_path.read_text() if digest_path.exists() else None
        if hashlib.sha256(content).hexdigest() == expected:
            state: dict[str, Any] = torch.load(
                io.BytesIO(content), map_location="cpu", weights_only=True
            )
            return state, damaged
        damaged.append(path.name)
    return None, damaged


def discard_checkpoints_after(directory: Path, step: int) -> None:
    """Remove the checkpoints of later steps, which nobody wants to go on from."""
    for path in directory.glob(_PATTERN):
        if int(path.stem.removeprefix("step_")) > step:
            path.unlink()
            path.with_suffix(".sha256").unlink(missing_ok=True)


def _write_atomically(path: Path, content: bytes | memoryview) -> None:
    partial = path.with_suffix(path.suffix + ".partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
