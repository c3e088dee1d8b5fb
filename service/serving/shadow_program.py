"""The process that a shadow model runs in: ``python -m service.serving.shadow_program NICENESS``.

It reads a line of JSON and a frame's bytes from standard input, answers with a line of JSON on
standard output, and ends when its input does.  A process of its own, because whatever a model on
trial does, take all memory, crash, hold the interpreter's lock, must not reach the line.
"""

import json
import logging
import os
import sys
from pathlib import Path
from typing import Any, BinaryIO

from data.camera_buffers import BufferLayout
from data.errors import DataError
from models import FrozenDetector, FrozenModel, freeze_bundle, load_bundle
from models.errors import ModelsError
from service.serving.uploaded_frame import UploadedFrame

logger = logging.getLogger(__name__)

_OOM_SCORE = Path("/proc/self/oom_score_adj")


def main(niceness: int) -> None:
    """Answer frames until the input ends."""
    give_way(niceness)
    # What a library prints must not get between the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    looked = _Looker()
    while header := sys.stdin.buffer.readline():
        answer = looked.answer(json.loads(header), sys.stdin.buffer)
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


def give_way(niceness: int) -> None:
    """Let everything else go first, and be the first to go where memory runs out."""
    os.nice(niceness)
    try:
        _OOM_SCORE.write_text("1000")
    except OSError as error:
        logger.warning("%s: the kernel may end another process first: %s", _OOM_SCORE, error)


class _Looker:
    """Keeps one model loaded and looks at frames with it."""

    def __init__(self) -> None:
        self._bundle = ""
        self._model: FrozenModel | FrozenDetector | None = None

    def answer(self, header: dict[str, Any], frames: BinaryIO) -> dict[str, Any]:
        raw = frames.read(header["bytes"])
        try:
            model = self._loaded(header["bundle"], header["device"])
            return _look(model, raw, header)
        except (DataError, ModelsError) as error:
            return {"error": f"{error.code}: {error.detail}"}

    def _loaded(self, bundle: str, device: str) -> FrozenModel | FrozenDetector:
        if self._model is None or bundle != self._bundle:
            self._model = None
            self._model = freeze_bundle(load_bundle(Path(bundle)), device)
            self._bundle = bundle
        return self._model


def _look(
    model: FrozenModel | FrozenDetector, raw: bytes, header: dict[str, Any]
) -> dict[str, Any]:
    layout = None if header["layout"] is None else BufferLayout(**header["layout"])
    frame = UploadedFrame(header["name"], raw, layout)
    decoded = frame.decode(model.info.preprocessing.bayer)
    inspection = model.inspect(decoded.pixels)
    return {
        "verdict": inspection.verdict,
        "defects": [
            {
                "class": defect.class_name,
                "score": defect.score,
                "box": list(defect.box),
                "area_px": defect.area_px,
                "polygon": [list(point) for point in defect.polygon],
            }
            for defect in inspection.defects
        ],
        "warnings": [*decoded.notes, *inspection.notes],
        "timings_ms": inspection.timings_ms,
    }


if __name__ == "__main__":
    main(int(sys.argv[1]))
