"""What a process other than the first leaves behind as its memory runs out.

The first one holds the run's memory plan and waits for it meanwhile, in the middle of a step.  So
the run ends as it does with any rank that dies, and the program that goes on finds this.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from training.run_directory import write_whole


@dataclass(frozen=True)
class ShortRank:
    """Who ran out of memory, and where.

    Attributes:
        rank: From 1.
        step: Optimizer steps taken.
        said: By whoever was refused memory.
    """

    rank: int
    step: int
    said: str


def leave_short_rank(path: Path, short: ShortRank) -> None:
    """Leave it at ``path``."""
    # Several may run out in one step; each of them is a reason.
    own = path.with_suffix(f".{short.rank}")
    write_whole(own, json.dumps(asdict(short)))
    own.rename(path)


def take_short_rank(path: Path) -> ShortRank | None:
    """Return and remove what was left at ``path``, if anything was."""
    try:
        short = ShortRank(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    path.unlink()
    return short
