"""Making way for serving: training pauses between two steps while a line is asking for verdicts.

Who serves touches a file, the mark, whenever a frame arrives. Nothing of a pause shows in what is
learned: it draws no random number, and time spent in it counts towards no limit and no schedule.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# A line sends its next frame within this, or its device is free for a step.
QUIET_S = 2.0
_POLL_S = 0.05


@dataclass(frozen=True)
class Yielding:
    """To whom a run makes way, and for how long.

    Attributes:
        mark: The file whose time of change tells of the last frame; None makes way for nobody.
        longest_pause_s: After which a step is taken whatever happens, so that a line that never
            rests slows training down and does not end it.
    """

    mark: Path | None = None
    longest_pause_s: float = 0.0

    @property
    def is_wanted(self) -> bool:
        """Whether a frame has arrived lately."""
        if self.mark is None:
            return False
        try:
            age_s = time.time() - self.mark.stat().st_mtime
        except FileNotFoundError:
            return False
        # A mark of tomorrow is a clock that was set back, and no reason to wait until then.
        return abs(age_s) < QUIET_S

    def pause(self, *, until: Callable[[], bool], begin: Callable[[], object]) -> float:
        """Wait while frames arrive, and return for how many seconds.

        Args:
            until: Ends the pause early.
            begin: Called once if there is a pause.
        """
        if not self.is_wanted or self.longest_pause_s <= 0:
            return 0.0
        begun_s = time.monotonic()
        begin()
        while self.is_wanted and not until():
            if time.monotonic() - begun_s >= self.longest_pause_s:
                break
            time.sleep(_POLL_S)
        return time.monotonic() - begun_s


def read_yielding(request: Path) -> Yielding:
    """Return what the request in a run's directory asks for; nothing if there is none."""
    try:
        asked = json.loads(request.read_bytes())
    except FileNotFoundError:
        return Yielding()
    return Yielding(Path(asked["mark"]), float(asked["longest_pause_s"]))
