"""Counting optimizer steps from inside a layer."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .optional_state import OptionalState

# Keeps the order of the tensors in the fingerprint; any large odd number does.
_ORDER = 6_364_136_223_846_793_005
_INTEGER_OF_SIZE = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def fingerprint(tensors: Sequence[Tensor]) -> Tensor:
    """Return a 64-bit hash of the tensors' bits, an int64 scalar on their device.

    Integer arithmetic modulo 2^64 does not depend on the order of summation, so equal bits give
    equal hashes on every device and with every number of threads, which a sum of floats does not.
    """
    total = torch.zeros((), dtype=torch.int64, device=tensors[0].device)
    for tensor in tensors:
        bits = tensor.detach().contiguous().view(_INTEGER_OF_SIZE[tensor.element_size()]).flatten()
        places = torch.arange(1, 2 * bits.numel(), 2, device=bits.device)
        total = total * _ORDER + (bits.to(torch.int64) * places).sum()
    return total


class OptimizerStepCounter(OptionalState):
    """Counts optimizer steps as changes of the parameters between training forward passes.

    Micro-batches of one accumulated step leave the parameters alone and count once. A tensor's
    `_version` would be cheaper, but it is not saved in a checkpoint, starts over in a deep copy and
    moves when a checkpoint is loaded; a hook on the optimizer would tie the layer to one; the bits
    of the parameters are exact, survive all of these and need no synchronisation with a GPU. Where
    none of them is trainable there is nothing to see, and every forward pass counts as a step.

    A parameter that is trainable but in no optimizer never changes and is never counted.

    Attributes:
        steps: Steps taken since the first training forward pass, an int64 scalar.
        seen_fingerprint: Hash of the parameters at the last training forward pass.
        started: Whether there was a training forward pass, 0 or 1.
    """

    steps: Tensor
    seen_fingerprint: Tensor
    started: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("steps", "seen_fingerprint", "started"):
            self.register_buffer(name, torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def observe(self, parameters: Sequence[Tensor | None]) -> Tensor:
        """Take note of a training forward pass and return the steps so far, an int64 scalar.

        Args:
            parameters: What the layer trains; None entries are skipped.
        """
        present = [parameter for parameter in parameters if parameter is not None]
        if any(parameter.requires_grad for parameter in present):
            current = fingerprint(present)
            self.steps.add_((current != self.seen_fingerprint) * self.started)
            self.seen_fingerprint.copy_(current)
        else:
            self.steps.add_(self.started)
        self.started.fill_(1)
        return self.steps.clone()
