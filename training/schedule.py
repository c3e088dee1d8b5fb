"""What moves the weights: the optimizer and the learning rate of each of its steps."""

import math

import torch
from torch import nn

from training.config import OptimizerSection


def build_optimizer(network: nn.Module, section: OptimizerSection) -> torch.optim.AdamW:
    """Return AdamW that decays matrices and filters but neither biases nor norms' parameters."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    groups = [
        {
            "params": [p for p in parameters if p.ndim >= 2],
            "weight_decay": section.weight_decay,
        },
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=section.learning_rate)


def learning_rate(
    section: OptimizerSection, step: int, steps_total: int, *, time_spent: float, rewinds: int
) -> float:
    """Return the rate of one step: linear warm-up, then a cosine to zero.

    Under a time limit the cosine follows whichever of steps and minutes is nearer its end, so
    that a run cut by the clock has come to rest as well. Each rewind halves the rate.

    Args:
        section: The configuration's.
        step: Optimizer steps taken before this one.
        steps_total: Optimizer steps of the whole run.
        time_spent: Share of the time limit that is used up; 0 where there is none.
        rewinds: How often the run went back.
    """
    peak = section.learning_rate * 0.5**rewinds
    warmup = min(section.warmup_steps, steps_total // 4)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    rest = (step - warmup) / max(steps_total - warmup, 1)
    rest = max(rest, min(time_spent, 1.0))
    return peak * 0.5 * (1 + math.cos(math.pi * rest))
