"""What a layer remembers of past iterations.

A window answers one call: `consult` says what the past tells about today's weights and takes today
in. Those in this file keep slopes of the variance whole; `factored_window` keeps their factors.
"""

from collections.abc import Callable
from typing import Any, Literal, Self

import torch
from torch import Tensor

from .convolution_moments import mean_response, slope_response
from .functional import (
    VarianceForm,
    WindowEstimates,
    statistics_dtype,
    taylor_means,
    taylor_variances,
)
from .observation import ForwardPass, Iteration, observe
from .optional_state import OptionalState

HistoryForm = Literal["ring", "exponential"]


class Window(OptionalState):
    """Buffers of a past, and the Taylor step that brings it to today's weights.

    Buffers are float32, or float64 for a float64 weight, and stay so when a module is cast to a
    16-bit type; those named in `stored_dtypes` have a type of their own and keep it.

    Attributes:
        rho: Length of the Taylor step.
        stored_dtypes: Types of buffers by name.
    """

    def __init__(self, rho: float) -> None:
        super().__init__()
        self.rho = rho
        self.stored_dtypes: dict[str, torch.dtype] = {}

    @property
    def filled(self) -> int:
        """How many iterations are remembered; synchronises with a GPU."""
        raise NotImplementedError

    def consult(self, run: ForwardPass) -> WindowEstimates:
        """Move what is remembered to today's weight and bias, and remember today."""
        raise NotImplementedError

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        saved = {key.removeprefix(prefix) for key in state_dict if key.startswith(prefix)}
        own = {name for name, _ in self.named_buffers(recurse=False)}
        if not saved or saved == own:
            super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
            return
        error_messages: list[str] = args[4] if len(args) > 4 else kwargs["error_msgs"]
        error_messages.append(
            f"'{prefix}*' was saved by another form of window: it holds {sorted(saved)} and this "
            f"one {sorted(own)}. Build the layer with the history and slope_rank that it was saved "
            "with, or leave these entries out of the state_dict, and the window starts empty."
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in self.named_buffers(recurse=False):
            if not buffer.is_floating_point():
                continue
            wanted = self.stored_dtypes.get(name, statistics_dtype(buffer.dtype))
            if buffer.dtype != wanted:
                # The cast may have thrown bits away already, so start from the tensor before it.
                kept = before[name].to(device=buffer.device, dtype=wanted)
                self.register_buffer(name, kept)
        return self


class DenseWindow(Window):
    """A window of whole slopes, and of the two halves of `consult`.

    Attributes:
        slope_positions: Output positions that a slope is computed from, at least; None for all.
    """

    def __init__(self, rho: float, slope_positions: int | None) -> None:
        super().__init__(rho)
        self.slope_positions = slope_positions

    def consult(self, run: ForwardPass) -> WindowEstimates:
        """Move what is remembered to today's weight and bias, and remember today."""
        convolution = run.convolution
        past = self.estimates(convolution.weight, convolution.bias)
        self.record(observe(*run, slope_positions=self.slope_positions), convolution.weight)
        return past

    def estimates(self, weight: Tensor, bias: Tensor | None) -> WindowEstimates:
        """Move what is remembered to today's weight and bias.

        Args:
            weight: The convolution's weight now.
            bias: Its bias now, or None; it shifts the means exactly.
        """
        raise NotImplementedError

    def record(self, iteration: Iteration, weight: Tensor) -> None:
        """Remember `iteration`, which ran with `weight`."""
        raise NotImplementedError


class RingWindow(DenseWindow):
    """The last `length` iterations, oldest overwritten first.

    One tensor of the weight's shape and one mean patch an iteration. No past weight is kept: the
    responses to it are, one number a channel, so the prediction for an unchanged weight is the
    measured value, however coarsely patch and slope are rounded or sampled.

    Patches are (T, G, F) and slopes (C, T, F). An entry with `positions` of zero is empty.
    """

    next_entry: Tensor
    positions: Tensor
    means: Tensor
    variances: Tensor
    mean_patches: Tensor
    mean_responses: Tensor
    variance_slopes: Tensor
    slope_responses: Tensor

    def __init__(
        self,
        length: int,
        weight: Tensor,
        groups: int,
        *,
        rho: float = 1.0,
        form: VarianceForm = "centred",
        slope_dtype: torch.dtype | None = None,
        slope_positions: int | None = None,
    ) -> None:
        """Make an empty window for a convolution.

        Args:
            length: Iterations to remember, today not among them; at least 1.
            weight: The convolution's weight, (C, I, kH, kW); its type and device are taken over.
            groups: The convolution's groups.
            rho: Length of the Taylor step.
            form: Form of the variance's step.
            slope_dtype: Type slopes are stored in; None for that of the statistics.
            slope_positions: See `DenseWindow`.
        """
        super().__init__(rho, slope_positions)
        self.length = length
        self.form = form
        dtype, device = statistics_dtype(weight.dtype), weight.device
        if slope_dtype is not None:
            self.stored_dtypes["variance_slopes"] = slope_dtype
        channels, patch = weight.shape[0], weight[0].numel()
        self.register_buffer("next_entry", torch.zeros((), dtype=torch.int64, device=device))
        self.register_buffer("positions", torch.zeros(length, dtype=torch.int64, device=device))
        for name, shape in (
            ("means", (length, channels)),
            ("variances", (length, channels)),
            ("mean_patches", (length, groups, patch)),
            ("mean_responses", (length, channels)),
            ("variance_slopes", (channels, length, patch)),
            ("slope_responses", (length, channels)),
        ):
            kind = self.stored_dtypes.get(name, dtype)
            self.register_buffer(name, torch.zeros(shape, dtype=kind, device=device))

    @property
    def filled(self) -> int:
        """How many iterations are remembered; synchronises with a GPU."""
        return int((self.positions > 0).sum())

    def estimates(self, weight: Tensor, bias: Tensor | None) -> WindowEstimates:
        """Move every remembered iteration to today's weight and bias; see `DenseWindow`."""
        weight = weight.detach().to(self.means.dtype)
        responses = mean_response(self.mean_patches, weight)
        means = taylor_means(self.means, self.mean_responses, responses, self.rho)
        variances = taylor_variances(
            self.variances,
            self.slope_responses,
            slope_response(self.variance_slopes, weight),
            means - self.means,
            rho=self.rho,
            form=self.form,
        )
        if bias is not None:
            means = means + bias.detach().to(means.dtype)
        weights = self.positions.to(means.dtype)[:, None].expand_as(means)
        return WindowEstimates(means, variances, weights)

    def record(self, iteration: Iteration, weight: Tensor) -> None:
        """Remember `iteration`, which ran with `weight`, in place of the oldest one."""
        entry = self.next_entry.view(1)
        slope = iteration.variance_slope.to(self.variance_slopes.dtype)[:, None]
        response = iteration.slope_response
        if slope.dtype != self.slope_responses.dtype:
            # The response must be that of the slope as it is stored.
            response = slope_response(slope, weight.detach().to(self.means.dtype))[0]
        for buffer, value in (
            (self.means, iteration.mean),
            (self.variances, iteration.variance),
            (self.mean_patches, iteration.mean_patch),
            (self.mean_responses, iteration.mean_response),
            (self.slope_responses, response),
        ):
            buffer.index_copy_(0, entry, value.to(buffer.dtype)[None])
        self.variance_slopes.index_copy_(1, entry, slope)
        self.positions.index_fill_(0, entry, iteration.positions)
        # The remainder of a single int64 takes longer on a CPU than all the rest of this function.
        self.next_entry.add_(1).mul_(self.next_entry < self.length)


class ExponentialWindow(DenseWindow):
    """A moving average over all past iterations, forgetting 1 / `length` of it with each new one.

    The estimates are affine in the weight, so an average of intercepts and slopes is the average of
    the estimates: one tensor of the weight's shape, however long the memory. The variance is that
    of the whole past, between its iterations as well as within them. The first is quadratic in the
    weight and enters the slope by its first-order term, taken when an iteration is recorded. The
    average is kept centred and at the weight of the last recorded iteration, as in Welford's
    recursion, and never as E[y^2] - E[y]^2.

    An iteration that is not finite, or whose square is not, is not recorded at all, because it
    would stay for ever.

    Patches are (G, F) and slopes (C, F); `positions` is the weight of the past, decayed.
    """

    positions: Tensor
    iterations: Tensor
    mean: Tensor
    variance: Tensor
    mean_patch: Tensor
    mean_response: Tensor
    variance_slope: Tensor
    slope_response: Tensor

    def __init__(
        self,
        length: int,
        weight: Tensor,
        groups: int,
        *,
        rho: float = 1.0,
        slope_positions: int | None = None,
    ) -> None:
        """Make an empty window for a convolution.

        Args:
            length: Iterations the memory amounts to, today among them; at least 2.
            weight: The convolution's weight, (C, I, kH, kW); its type and device are taken over.
            groups: The convolution's groups.
            rho: Length of the Taylor step.
            slope_positions: See `DenseWindow`.
        """
        super().__init__(rho, slope_positions)
        self.decay = 1 - 1 / length
        dtype, device = statistics_dtype(weight.dtype), weight.device
        channels, patch = weight.shape[0], weight[0].numel()
        self.register_buffer("iterations", torch.zeros((), dtype=torch.int64, device=device))
        for name, shape in (
            ("positions", ()),
            ("mean", (channels,)),
            ("variance", (channels,)),
            ("mean_patch", (groups, patch)),
            ("mean_response", (channels,)),
            ("variance_slope", (channels, patch)),
            ("slope_response", (channels,)),
        ):
            self.register_buffer(name, torch.zeros(shape, dtype=dtype, device=device))

    @property
    def filled(self) -> int:
        """How many iterations have been recorded; synchronises with a GPU."""
        return int(self.iterations)

    def estimates(self, weight: Tensor, bias: Tensor | None) -> WindowEstimates:
        """Move the past to today's weight and bias, as one estimate; see `DenseWindow`."""
        means, variances = self._moved(weight.detach().to(self.mean.dtype))
        if bias is not None:
            means = means + bias.detach().to(means.dtype)
        weights = (self.positions * self.decay).expand_as(means)
        return WindowEstimates(means, variances, weights)

    def _moved(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance at `weight`, both (1, C)."""
        now = mean_response(self.mean_patch[None], weight)
        means = taylor_means(self.mean[None], self.mean_response[None], now, self.rho)
        slopes = slope_response(self.variance_slope[:, None], weight)
        shifts = means - self.mean
        variances = taylor_variances(
            self.variance[None],
            self.slope_response[None],
            slopes,
            shifts,
            rho=self.rho,
            form="centred",
        )
        return means, variances

    def record(self, iteration: Iteration, weight: Tensor) -> None:
        """Take `iteration`, which ran with `weight`, into the average."""
        weight = weight.detach().to(self.mean.dtype)
        means, variances = self._moved(weight)
        mean_change = iteration.mean.to(means.dtype) - means[0]
        patch_change = iteration.mean_patch.to(means.dtype) - self.mean_patch
        # The average takes in products of the two changes, which overflow before the changes do.
        squares = (mean_change.square(), patch_change.square())
        # A slope that is not finite anywhere has a response that is not.
        judged = (*squares, iteration.variance, iteration.slope_response)
        finite = torch.stack([torch.isfinite(value).all() for value in judged]).all()
        mean_change, patch_change = mean_change.where(finite, 0), patch_change.where(finite, 0)
        past = self.positions * self.decay
        share = torch.where(finite, iteration.positions / (past + iteration.positions), 0)
        between = share * (1 - share)
        # S + share (D - S) + 2 share (1 - share) (mu_t - mu) (p_t - p), group by group
        # and in place: passes over tensors of the weight's size are what this function costs.
        slope = iteration.variance_slope.to(means.dtype).where(finite, self.variance_slope)
        by_group = self.variance_slope.lerp_(slope, share).view(
            len(patch_change), -1, slope.shape[1]
        )
        by_group.addcmul_(
            (2 * between * mean_change).view(len(patch_change), -1, 1), patch_change[:, None]
        )
        within = torch.lerp(
            variances[0], iteration.variance.to(means.dtype).where(finite, 0), share
        )
        self.variance.copy_(within + between * mean_change.square())
        self.mean.copy_(means[0] + share * mean_change)
        self.mean_patch.add_(share * patch_change)
        self.mean_response.copy_(mean_response(self.mean_patch[None], weight)[0])
        self.slope_response.copy_(slope_response(self.variance_slope[:, None], weight)[0])
        self.positions.copy_(torch.where(finite, past + iteration.positions, self.positions))
        self.iterations.add_(finite)
