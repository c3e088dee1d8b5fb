"""``python -m service.serving.engine_program MODEL DIGEST OUTCOME``: prepares a model's engines.

A process of its own: runtimes and quantization are native code, which may die without taking the
worker along, and what they allocated goes back to the system. It leaves with whoever started it,
which holds the other end of its standard input open.
"""

import json
import os
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

from data import DataError, Item, Manifest, decode_frame
from data.storage import read_verified
from models.engine_preparation import FrameSource, StoredFrame, prepare_engines
from models.errors import ModelsError
from models.preprocessing import Pixels
from service.errors import ServiceError
from service.serve import configure_logging
from service.settings import Settings
from service.storage import Storage

# The line's answers and a training step come first.
_NICENESS = 10


def main(arguments: list[str]) -> int:
    """Prepare the engines; return the exit status, and write the error or null to the outcome."""
    model_id, digest, outcome = arguments
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    configure_logging()
    os.nice(_NICENESS)
    error = prepare(Settings(), model_id, digest)
    Path(outcome).write_text(json.dumps(error), encoding="utf-8")
    return 0 if error is None else 1


def prepare(settings: Settings, model_id: str, digest: str) -> dict[str, Any] | None:
    """Prepare a model's engines from the frames of its version; return why it was not done."""
    storage = Storage(settings.storage_dir)
    try:
        frames = frame_source(Manifest.read(storage.manifest_path(digest)), storage.root)
        folder = storage.exports_dir(model_id)
        prepare_engines(storage.bundle_dir(model_id), folder, frames, settings.device)
    except (DataError, ModelsError, ServiceError) as error:
        return {"code": error.code, "detail": error.detail, "hint": error.hint}
    return None


def frame_source(manifest: Manifest, root: Path) -> FrameSource:
    """Return a version's calibration and training frames, each read when it is needed."""

    def read(item: Item) -> Pixels:
        raw = read_verified(root, item.file, item.sha256)
        return decode_frame(raw, name=item.name, bayer=manifest.bayer).pixels

    def of(split: str) -> list[StoredFrame]:
        return [
            StoredFrame(item.name, partial(read, item))
            for item in manifest.items
            if item.split == split
        ]

    return FrameSource(calibration=of("calibration"), training=of("train"))


def _leave_with_parent() -> None:
    # Nobody ever writes: the read returns when the other end has closed.
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
