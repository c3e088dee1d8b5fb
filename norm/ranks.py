"""Statistics over the processes of a distributed training.

DistributedDataParallel gives every rank the same weights, so an estimate that one rank has moved to
today's weights holds for all of them: only estimates are exchanged, never patches or slopes.
"""

from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import nn

from .functional import BatchStatistics, WindowEstimates, pool
from .window import Window

RankPolicy = Literal["separate", "pooled"]
# What DistributedDataParallel reads of the module it wraps; there is no public way to set it.
IGNORED_BY_DDP = "_ddp_params_and_buffers_to_ignore"


class RankEstimates(NamedTuple):
    """Today's batches of all ranks as one batch, and the past of all ranks."""

    today: BatchStatistics
    past: WindowEstimates


def gather_over_ranks(today: BatchStatistics, past: WindowEstimates) -> RankEstimates:
    """Gather the statistics of all ranks, in one collective of 3 (T + 1) C numbers a rank.

    Every rank gets the same result, so running statistics stay equal without a broadcast. It waits
    for the slowest rank and, on a GPU, for the collective. No gradient passes.

    Args:
        today: This rank's statistics, (C,).
        past: This rank's estimates, (T, C), the same T on every rank.

    Returns:
        The arguments unchanged where there is no process group or only one rank.
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return RankEstimates(today, past)
    positions = torch.full_like(today.mean, today.positions)
    own = torch.stack(
        [
            torch.cat([now[None], then])
            for now, then in zip((today.mean, today.variance, positions), past, strict=True)
        ]
    )
    every = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(every, own)
    gathered = torch.stack(every, dim=1)  # (3, ranks, T + 1, C)
    now, then = gathered[:, :, 0], gathered[:, :, 1:].flatten(1, 2)
    total = int(now[2, :, 0].sum())
    first = BatchStatistics(now[0, 0], now[1, 0], int(now[2, 0, 0]))
    merged = pool(first, WindowEstimates(*now[:, 1:]))
    return RankEstimates(
        BatchStatistics(merged.mean, merged.variance, total), WindowEstimates(*then)
    )


def leave_windows_to_each_rank(model: nn.Module) -> None:
    """Tell DistributedDataParallel to keep its hands off the windows in `model`.

    By default it overwrites the buffers of every rank with those of rank 0 in each forward pass,
    which would send whole windows over the network and lose what the other ranks have seen. It
    asks the module that it wraps, so that must be `model` itself.
    """
    windows = {
        f"{name}.{buffer}"
        for name, module in model.named_modules()
        if isinstance(module, Window)
        for buffer, _ in module.named_buffers(recurse=False)
    }
    ignored: set[str] = set(getattr(model, IGNORED_BY_DDP, ()))
    if windows - ignored:
        setattr(model, IGNORED_BY_DDP, sorted(ignored | windows))
