"""A window that keeps the factors of the variance's slopes in the place of the slopes."""

import torch
from torch import Tensor

from .convolution_moments import convolution_geometry, mean_patch
from .functional import (
    VarianceForm,
    WindowEstimates,
    statistics_dtype,
    taylor_means,
    taylor_variances,
)
from .observation import ForwardPass, sampled_gain
from .sampled_patches import outputs_at, patches_at, positions_for
from .window import Window


def is_smaller_factored(weight: Tensor, groups: int, rank: int) -> bool:
    """Return whether `rank` factors of a slope are fewer numbers than the slope, P (D + C) < C F.

    D = G*F is the length of a patch of all groups. Depthwise convolutions and the narrowest
    layers are not smaller.
    """
    channels, patch = weight.shape[0], weight[0].numel()
    return rank * (groups * patch + channels) < channels * patch


def factored_responses(patches: Tensor, weight: Tensor) -> Tensor:
    """Return the inner products of patches and weight, (R, C), from flat patches (G, R, F).

    One product reads the weight once for all patches of the window.
    """
    by_group = weight.reshape(len(patches), -1, patches.shape[2])
    if len(patches) == 1:
        return patches[0] @ by_group[0].T
    return torch.bmm(patches, by_group.transpose(1, 2)).transpose(0, 1).flatten(1)


class FactoredWindow(Window):
    """The last `length` iterations with slopes of a fixed rank, oldest overwritten first.

    The slope from P sampled positions is a product of thin factors, D = (2 / P) sum
    (y_p - mu) (q_p - p)^T with q_p the input patch at a position and p the mean patch. Kept are
    the factors: P (G F + C) numbers an iteration in the place of C F, no weight-gradient product,
    and <D, w_t> for the whole window is one product of all its patches with today's weight. It is
    the slope that `observation.sampled_slope` computes from the same positions, scaled by the same
    rule.

    A map of fewer than P positions gives its exact slope; the rest of the factors count nothing.

    Today is written before anything is read, so that what patches say of today's weight and of
    their own day's comes from the same product; hence a place more than `length`. `patches` is
    (G, T, (P + 1) * F) with the mean patch first, `outputs` (T, P, C) holds 2 / P (y_p - mu), and
    `statistics` (T, 5, C) mean, variance, <p, w>, the scaled <D, w> and the scale of D. A place
    with `positions` of zero is empty.
    """

    next_entry: Tensor
    positions: Tensor
    statistics: Tensor
    patches: Tensor
    outputs: Tensor

    def __init__(
        self,
        length: int,
        weight: Tensor,
        groups: int,
        *,
        rank: int,
        rho: float = 1.0,
        form: VarianceForm = "centred",
    ) -> None:
        """Make an empty window for a convolution.

        Args:
            length: Iterations to remember, today not among them; at least 1.
            weight: The convolution's weight, (C, I, kH, kW); its type and device are taken over.
            groups: The convolution's groups.
            rank: Positions P that a slope is taken from.
            rho: Length of the Taylor step.
            form: Form of the variance's step.
        """
        super().__init__(rho)
        self.length = length
        self.rank = rank
        self.form = form
        dtype, device = statistics_dtype(weight.dtype), weight.device
        channels, patch, places = weight.shape[0], weight[0].numel(), length + 1
        self.register_buffer("next_entry", torch.zeros((), dtype=torch.int64, device=device))
        self.register_buffer("positions", torch.zeros(places, dtype=torch.int64, device=device))
        for name, shape in (
            ("statistics", (places, 5, channels)),
            ("patches", (groups, places, (rank + 1) * patch)),
            ("outputs", (places, rank, channels)),
        ):
            self.register_buffer(name, torch.zeros(shape, dtype=dtype, device=device))

    @property
    def filled(self) -> int:
        """How many iterations are remembered; synchronises with a GPU."""
        return min(int((self.positions > 0).sum()), self.length)

    def consult(self, run: ForwardPass) -> WindowEstimates:
        """Remember today, and move every other iteration to today's weight and bias.

        Today's own place is among the estimates, with a weight of zero.
        """
        dtype, convolution, today = self.statistics.dtype, run.convolution, run.today
        weight = convolution.weight.detach().to(dtype)
        bias = None if convolution.bias is None else convolution.bias.detach().to(dtype)
        entry = self.next_entry.view(1)
        self._write_factors(entry, run)
        rows = self.patches.view(len(self.patches), -1, weight[0].numel())
        responses = factored_responses(rows, weight).view(self.length + 1, self.rank + 1, -1)
        mean_responses = responses[:, 0]
        slope_responses = (self.outputs * responses[:, 1:]).sum(1)
        own_slope = slope_responses.index_select(0, entry)[0]
        gain = sampled_gain(own_slope, today.variance.to(dtype))
        own = (
            today.mean.to(dtype) if bias is None else today.mean.to(dtype) - bias,
            today.variance.to(dtype),
            mean_responses.index_select(0, entry)[0],
            own_slope * gain,
            gain,
        )
        self.statistics.index_copy_(0, entry, torch.stack(own)[None])
        means, variances, mean_then, slope_then, gains = self.statistics.unbind(1)
        moved = taylor_means(means, mean_then, mean_responses, self.rho)
        variances = taylor_variances(
            variances,
            slope_then,
            gains * slope_responses,
            moved - means,
            rho=self.rho,
            form=self.form,
        )
        weights = self.positions.index_fill(0, entry, 0).to(dtype)[:, None].expand_as(moved)
        self.positions.index_fill_(0, entry, today.positions)
        self.next_entry.add_(1).mul_(self.next_entry <= self.length)
        return WindowEstimates(moved if bias is None else moved + bias, variances, weights)

    def _write_factors(self, entry: Tensor, run: ForwardPass) -> None:
        """Write today's mean patch, sampled patches and outputs in the place of the oldest."""
        dtype, x, y = self.patches.dtype, run.x, run.y
        geometry = convolution_geometry(run.convolution, x, (y.shape[2], y.shape[3]), run.rule)
        positions = positions_for(x, geometry, self.rank, dtype)
        patch = mean_patch(x, geometry, dtype).flatten(1)[:, None]
        sampled = patches_at(x, positions, geometry.groups).to(dtype) - patch
        self.patches.index_copy_(1, entry, torch.cat([patch, sampled], 1).flatten(1)[:, None])
        outputs = outputs_at(y.detach(), positions).to(dtype) - run.today.mean.to(dtype)
        self.outputs.index_copy_(0, entry, (outputs * positions.factor)[None])
