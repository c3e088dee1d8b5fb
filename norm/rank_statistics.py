"""Running statistics of several processes as those of one that ran all their batches.

Each rank of a distributed training moves its own running statistics by its own batches. They are
moving averages, r <- (1 - m) r + m s, so what p batches made of r is (1 - m)^p r + c with one c,
whatever r was. Replaying the changes of rank 0, then of rank 1, and so on gives what one process
would hold that ran the batches in this order, and not an average of the ranks, which would forget
the past at the rate of a single rank.
"""

from typing import NamedTuple, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .cross_iteration import CrossIterationBatchNorm2d
from .errors import OptionError


class _Held(NamedTuple):
    """What the layers hold, one after the other: float64, but for the batches."""

    values: Tensor  # (L,) means and variances
    batches: Tensor  # (N,) int64, one a layer


class RankStatistics:
    """What the ranks' running statistics were before they went apart.

    Make one before a training step's forward passes and call `merge` after them, on every rank.
    Layers whose ranks are "pooled" move alike everywhere and are left alone, as are layers without
    running statistics and those whose statistics are frozen.

    Raises:
        OptionError: A layer's momentum is None: a cumulative average has no constant rate.
    """

    def __init__(self, layers: list[_BatchNorm]) -> None:
        self._layers = layers
        self._before = self._held()

    @classmethod
    def of(cls, model: nn.Module) -> Self:
        """Take note of what the layers of `model` hold now."""
        layers = [layer for layer in model.modules() if isinstance(layer, _BatchNorm)]
        apart = [
            layer
            for layer in layers
            if layer.running_mean is not None
            and not (isinstance(layer, CrossIterationBatchNorm2d) and layer.ranks == "pooled")
        ]
        for layer in apart:
            if layer.momentum is None:
                raise OptionError("momentum None has no rate to merge the ranks' statistics by")
        return cls(apart)

    def _held(self) -> _Held:
        if not self._layers:
            return _Held(torch.zeros(0), torch.zeros(0))
        values = torch.cat([t.double() for layer in self._layers for t in _running(layer)])
        return _Held(values, torch.stack([_tracked(layer) for layer in self._layers]))

    @torch.no_grad()
    def merge(self) -> None:
        """Give every rank the statistics of all ranks' batches since `of`, in one collective.

        Side effects: `running_mean`, `running_var` and `num_batches_tracked` of the layers.
        """
        if not self._layers:
            return
        after = self._held()
        passes = after.batches - self._before.batches
        sizes = torch.tensor(
            [2 * layer.num_features for layer in self._layers], device=passes.device
        )
        rates = torch.tensor(
            [1.0 - float(layer.momentum or 0.0) for layer in self._layers],
            dtype=torch.float64,
            device=passes.device,
        )
        kept = (rates**passes).repeat_interleave(sizes)
        own = torch.cat([kept, after.values - kept * self._before.values, passes.double()])
        every = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(every, own)
        values, batches = self._before.values, self._before.batches
        for rank in every:
            share, change, count = torch.split(rank, [len(kept), len(kept), len(passes)])
            values = share * values + change
            batches = batches + count.long()
        self._write(_Held(values, batches))

    def _write(self, new: _Held) -> None:
        sizes = [layer.num_features for layer in self._layers for _ in range(2)]
        values = torch.split(new.values, sizes)
        buffers = [buffer for layer in self._layers for buffer in _running(layer)]
        for buffer, value in zip(buffers, values, strict=True):
            buffer.copy_(value)
        for layer, count in zip(self._layers, new.batches, strict=True):
            _tracked(layer).copy_(count)


def _running(layer: _BatchNorm) -> tuple[Tensor, Tensor]:
    # They are there: layers without them are left out from the start.
    assert layer.running_mean is not None
    assert layer.running_var is not None
    return layer.running_mean, layer.running_var


def _tracked(layer: _BatchNorm) -> Tensor:
    assert layer.num_batches_tracked is not None
    return layer.num_batches_tracked
