"""The file that tells training on this machine that a line is asking for verdicts."""

import logging
import time
from pathlib import Path

logger = logging.getLogger(__name__)

# Training looks for frames of the last two seconds.
_TOUCH_EVERY_S = 0.5


class ServingMark:
    """Touches the mark when frames arrive, now and then; safe for several threads.

    Args:
        path: Of the mark.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._touched_s = 0.0

    def touch(self) -> None:
        """Say that a frame has arrived; a disk that would not take it costs no verdict."""
        now_s = time.monotonic()
        if now_s - self._touched_s < _TOUCH_EVERY_S:
            return
        self._touched_s = now_s
        try:
            self._path.touch()
        except OSError:
            logger.exception("training is not told that frames arrive")
