"""An exponential moving average of the weights, which stands still where they jitter."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from norm import plain_state_dict


def decay_at(step: int, decay: float) -> float:
    """Return the decay in force at an optimizer step, from 1.

    It rises as (1 + t) / (10 + t) until it reaches ``decay``, so that the average reaches back
    over about a tenth of the steps so far: at a constant decay of 0.998 a run of 500 steps would
    end at an average of which a third is still the random start.
    """
    return min(decay, (1 + step) / (10 + step))


class WeightAverage:
    """The moving average of everything that makes the model: weights and running statistics.

    Running statistics are averaged like weights. A layer's mean is linear in its weights, so the
    average of the means is nearer the mean at the average weights than the newest one is, which
    belongs to weights several steps ahead. Counters are copied, and windows, which are no part of
    the model, are left out.

    torch.optim.swa_utils.AveragedModel is not used, because it holds a second network: it would
    copy, and at every step move, each layer's window, which is several times the weights.

    Args:
        network: Where the average begins.
        decay: See `decay_at`.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self._average = {
            name: tensor.detach().clone() for name, tensor in plain_state_dict(network).items()
        }

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Take in the weights after an optimizer step, counted from 1."""
        current = plain_state_dict(network)
        averaged, newest = [], []
        for name, average in self._average.items():
            if average.is_floating_point():
                averaged.append(average)
                newest.append(current[name])
            else:
                average.copy_(current[name])
        # torch states no types for it.
        move = get_ema_multi_avg_fn(decay_at(step, self.decay))  # type: ignore[no-untyped-call]
        move(averaged, newest, step)

    @contextmanager
    def applied_to(self, network: nn.Module) -> Generator[None]:
        """Let the network hold the average for a while, then its own weights again, bit for bit."""
        own = {name: tensor.clone() for name, tensor in plain_state_dict(network).items()}
        self._write(network, self._average)
        try:
            yield
        finally:
            self._write(network, own)

    @staticmethod
    @torch.no_grad()
    def _write(network: nn.Module, values: Mapping[str, Tensor]) -> None:
        for name, tensor in plain_state_dict(network).items():
            tensor.copy_(values[name])

    def state_dict(self) -> dict[str, Tensor]:
        """Return the average; tensors are shared."""
        return dict(self._average)

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Put the average back to what `state_dict` returned."""
        for name, average in self._average.items():
            average.copy_(state[name])
