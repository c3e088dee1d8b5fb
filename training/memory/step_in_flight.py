"""A trace of the step or look at work, which a program that is killed in it leaves behind."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from training.memory.limits import boot_id, kernel_memory_kills


@dataclass(frozen=True)
class Trace:
    """Where a program was, and how often the kernel had killed for memory until then.

    Attributes:
        step: From 1.
        kernel_kills: Since the kernel started; None where it does not tell.
        boot: Names this run of the kernel.
        looking: Whether whole frames were looked at after that step, which was finished.
    """

    step: int
    kernel_kills: int | None
    boot: str
    looking: bool = False

    def killed_for_memory_since(self) -> bool:
        """Return whether the kernel has killed some process for memory since this was left."""
        now = kernel_memory_kills()
        if now is None or self.kernel_kills is None or self.boot != boot_id():
            return False
        return now > self.kernel_kills


@contextmanager
def step_in_flight(path: Path, step: int, *, looking: bool = False) -> Iterator[None]:
    """Leave a trace at ``path`` while a step, or a look, is at work; it stays if the program dies.

    Args:
        path: Of the trace.
        step: From 1; of a look the last one before it.
        looking: Whether it is a look at whole frames.
    """
    # The page cache outlives a killed program: nothing has to reach the disk.
    path.write_text(json.dumps(asdict(Trace(step, kernel_memory_kills(), boot_id(), looking))))
    try:
        yield
    finally:
        path.unlink()


def take_trace(path: Path) -> Trace | None:
    """Return and remove what a dead program left behind, if it did."""
    try:
        trace = Trace(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        # The program died while it wrote: it was about to begin a step, and we can't know which.
        trace = None
    path.unlink()
    return trace
