"""A trace of the step at work, which a program that is killed in it leaves behind."""

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
    """

    step: int
    kernel_kills: int | None
    boot: str

    def killed_for_memory_since(self) -> bool:
        """Return whether the kernel has killed some process for memory since the step began."""
        now = kernel_memory_kills()
        if now is None or self.kernel_kills is None or self.boot != boot_id():
            return False
        return now > self.kernel_kills


@contextmanager
def step_in_flight(path: Path, step: int) -> Iterator[None]:
    """Leave a trace at ``path`` while a step is at work; it stays if the program dies."""
    # The page cache outlives a killed program: nothing has to reach the disk.
    path.write_text(json.dumps(asdict(Trace(step, kernel_memory_kills(), boot_id()))))
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
