"""Telling a recomputed forward pass from a new one, and giving it the same statistics.

Activation checkpointing (torch.utils.checkpoint, reentrant or not) runs a forward pass again inside
the backward pass. Statistics must not move a second time, and a window that has moved on would give
another output than the one the loss was computed from.
"""

from collections import deque
from typing import Any, Protocol

import torch

from .errors import HandoverError
from .functional import BatchStatistics, Normalizer

# What a forward pass measured, and what it normalized with.
Entry = tuple[BatchStatistics, Normalizer]
# Forward passes that may wait for their backward pass, where several of them share one. An entry
# is five numbers a channel, or the fourteen that the GPU's kernels leave together.
KEPT_FORWARD_PASSES = 8
# A recomputed batch has the statistics of the first computation, to the rounding of kernels that
# add in any order they like; two different frames differ by far more in some channel.
LARGEST_DEVIATION = 1e-2


def recomputing() -> bool:
    """Return whether this forward pass runs inside a backward pass.

    A compiled graph recomputes without calling the layer, so there the answer is no.
    """
    if torch.compiler.is_compiling():
        return False
    # torch.utils.checkpoint asks the same of the same private function; there is no public one.
    task: int = torch._C._current_graph_task_id()  # noqa: SLF001
    return task != -1


class PackedEntry(Protocol):
    """An `Entry` that is taken apart when it is asked for, which is seldom."""

    def unpack(self) -> Entry:
        """Return it."""


class RecentNormalizers:
    """What the last forward passes normalized with, found again by the batch's own statistics.

    It is no history: nothing of it reaches another batch, and a copy or a checkpoint of the model
    starts without it.
    """

    def __init__(self) -> None:
        self._entries: deque[Entry | PackedEntry] = deque(maxlen=KEPT_FORWARD_PASSES)

    def remember(self, entry: Entry | PackedEntry) -> None:
        """Keep what a new forward pass normalized with."""
        self._entries.append(entry)

    def find(self, today: BatchStatistics) -> Normalizer:
        """Return what the forward pass with these statistics normalized with.

        Raises:
            HandoverError: No recent forward pass had these statistics.
        """
        best, smallest = None, LARGEST_DEVIATION
        for entry in reversed(self._entries):
            then, normalizer = entry if isinstance(entry, tuple) else entry.unpack()
            if then.positions != today.positions or then.mean.device != today.mean.device:
                continue
            distance = _distance(today, then)
            if distance < smallest:
                best, smallest = normalizer, distance
        if best is None:
            raise HandoverError(
                "a normalization layer ran inside a backward pass on a batch that no recent forward"
                " pass had. Recompute only what was computed, with the same random state, within "
                f"{KEPT_FORWARD_PASSES} forward passes."
            )
        return best

    def __getstate__(self) -> dict[str, Any]:
        return {"_entries": deque(maxlen=KEPT_FORWARD_PASSES)}


def _distance(today: BatchStatistics, then: BatchStatistics) -> float:
    """Return the largest difference of the means and deviations, in deviations of `then`."""
    deviation = then.variance.sqrt()
    scale = deviation + torch.finfo(deviation.dtype).eps * then.mean.abs()
    scale = scale.clamp_min(torch.finfo(deviation.dtype).tiny)
    shift = (today.mean - then.mean).abs() / scale
    spread = (today.variance.sqrt() - deviation).abs() / scale
    # Overflowed batches compare unequal to themselves, and are equal here if both overflowed.
    return float(torch.maximum(shift, spread).nan_to_num(nan=0.0).max())
