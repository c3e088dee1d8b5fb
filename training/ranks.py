"""The processes that train one network together, and all that they tell each other.

Every rank runs the same loop over the same plan and decides by the same numbers, so that they never
have to be told what to do: what only one of them can know (the clock, a cancel request, a look at
the calibration frames) comes from the first rank, and what each of them holds a part of (counts,
losses, gradients) is summed.  Alone, all of this is nothing.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

Value = TypeVar("Value")
Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Ranks:
    """This process's place among those of its run; the process group exists if there are several.

    Attributes:
        rank: From 0; the first writes events, checkpoints and the model.
        count: Of processes.
        lockstep: Whether forward passes wait for each other, as pooled windows do.
    """

    rank: int = 0
    count: int = 1
    lockstep: bool = False

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def from_first(self, value: Value) -> Value:
        """Return the first rank's value on every rank."""
        if self.count == 1:
            return value
        values: list[Any] = [value]
        dist.broadcast_object_list(values, src=0)
        first: Value = values[0]
        return first

    def gather(self, value: Value) -> list[Value]:
        """Return all ranks' values on the first, nothing on the others."""
        if self.count == 1:
            return [value]
        values: list[Any] | None = [None] * self.count if self.is_first else None
        dist.gather_object(value, values, dst=0)
        return values or []

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on some rank."""
        return self.sum([int(flag)])[0] > 0

    def sum(self, numbers: Sequence[Number]) -> list[Number]:
        """Return the sums over all ranks: of integers exactly, of floats as float64."""
        if self.count == 1:
            return list(numbers)
        whole = all(isinstance(number, int) for number in numbers)
        total = torch.tensor(numbers, dtype=torch.int64 if whole else torch.float64)
        dist.all_reduce(total)
        sums: list[Number] = total.tolist()
        return sums

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Put the sum of all ranks' gradients in the place of each rank's own.

        All of them travel as one, after the step's last backward pass.  A parameter without a
        gradient has none to add.  Every rank ends up with the same bits.
        """
        if self.count == 1:
            return
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        for parameter in trained:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        sizes = [gradient.numel() for gradient in gradients]
        for gradient, total in zip(gradients, torch.split(flat, sizes), strict=True):
            gradient.copy_(total.view(gradient.shape))
