"""Slopes of the variance from a grid of positions, and slopes stored in 16 bits."""

import copy
import io
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from norm import CrossIterationBatchNorm2d
from norm.functional import BatchStatistics, batch_statistics
from norm.observation import Iteration, observe, sampling_stride
from norm.window import RingWindow
from tests.oracles.cross_iteration import channel_slopes

# torch notes that it pads a copy for an even kernel, which is the asymmetric case on trial.
even_kernels = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


def statistics_of(convolution: nn.Conv2d, x: Tensor) -> tuple[Tensor, BatchStatistics]:
    y = convolution(x).detach()
    return y, batch_statistics(y)


def observed(convolution: nn.Conv2d, x: Tensor, slope_positions: int | None) -> Iteration:
    y, today = statistics_of(convolution, x)
    return observe(convolution, x, y, today, rule="declared", slope_positions=slope_positions)


def slope_on_grid(convolution: nn.Conv2d, x: Tensor, stride: int) -> Tensor:
    """Differentiate the spread of every `stride`-th position around the whole batch's mean."""
    weight = convolution.weight.detach().clone().requires_grad_()
    y = convolution._conv_forward(x, weight, None)
    apart = (y - y.mean((0, 2, 3), keepdim=True))[:, :, ::stride, ::stride]
    slope = channel_slopes(apart.square().mean((0, 2, 3)), weight).flatten(1)
    response = (slope * weight.detach().flatten(1)).sum(1)
    wanted = 2 * y.detach().var((0, 2, 3), correction=0)
    scaled: Tensor = slope * (wanted / response)[:, None]
    return scaled


def predicted_variance(iteration: Iteration, convolution: nn.Conv2d, weight: Tensor) -> Tensor:
    """Record with the convolution's weight and return the estimate for another."""
    window = RingWindow(1, convolution.weight, convolution.groups)
    window.record(iteration, convolution.weight)
    return window.estimates(weight, None).variances[0]


def variance_at(convolution: nn.Conv2d, x: Tensor, weight: Tensor) -> Tensor:
    y: Tensor = convolution._conv_forward(x, weight, None)
    return y.detach().var((0, 2, 3), correction=0)


CONVOLUTIONS = {
    "plain": lambda: nn.Conv2d(4, 6, 3, padding=1),
    "1x1": lambda: nn.Conv2d(4, 6, 1, bias=False),
    "odd stride": lambda: nn.Conv2d(4, 6, 3, stride=(3, 1), padding=1, bias=False),
    "dilated": lambda: nn.Conv2d(4, 6, 3, dilation=2, padding=(0, 2)),
    "grouped": lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2),
    "depthwise": lambda: nn.Conv2d(4, 8, 3, groups=4, bias=False),
    "same, even kernel": lambda: nn.Conv2d(4, 6, 4, padding="same", bias=False),
    "reflect": lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
}
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@even_kernels
@pytest.mark.parametrize("geometry", CONVOLUTIONS)
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("slope_positions", [40, 100])
def test_the_slope_of_a_grid_is_the_derivative_at_exactly_those_positions(
    geometry: str, memory_format: str, slope_positions: int
) -> None:
    torch.manual_seed(0)
    convolution = CONVOLUTIONS[geometry]().double()
    x = torch.randn(2, 4, 37, 31, dtype=torch.float64) + 0.5
    x = x.to(memory_format=FORMATS[memory_format])
    y, _ = statistics_of(convolution, x)
    stride = sampling_stride(y.shape[2], y.shape[3], 2, slope_positions)
    assert stride > 1, "a grid of every position proves nothing"
    iteration = observed(convolution, x, slope_positions)
    expected = slope_on_grid(convolution, x, stride)
    torch.testing.assert_close(iteration.variance_slope, expected, rtol=1e-9, atol=1e-10)
    # For a convolution <D, w> is twice the variance, of the whole batch.
    response = (iteration.variance_slope * convolution.weight.detach().flatten(1)).sum(1)
    torch.testing.assert_close(response, 2 * iteration.variance, rtol=1e-12, atol=0)
    torch.testing.assert_close(iteration.slope_response, response, rtol=1e-12, atol=0)


def test_the_prediction_for_an_unchanged_weight_is_what_was_measured() -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(4, 6, 3, padding=1)
    iteration = observed(convolution, torch.randn(1, 4, 40, 40) + 2, 64)
    prediction = predicted_variance(iteration, convolution, convolution.weight)
    # The response is scaled along with the slope and not added up again: float32 roundings.
    torch.testing.assert_close(prediction, iteration.variance)


def test_a_weight_that_only_grows_is_predicted_as_well_as_from_all_positions() -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(4, 6, 3, padding=1, bias=False).double()
    x = torch.randn(1, 4, 40, 40, dtype=torch.float64) + 0.5
    grown = 1.01 * convolution.weight.detach()
    predictions = [
        predicted_variance(observed(convolution, x, wanted), convolution, grown)
        for wanted in (64, None)
    ]
    torch.testing.assert_close(*predictions, rtol=1e-12, atol=0)
    # Variance grows by 1.01^2 = 1.0201 and the first-order step says 1.02.
    expected = variance_at(convolution, x, grown) * (1.02 / 1.0201)
    torch.testing.assert_close(predictions[0], expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("offset", [0.0, 3.0, 100.0])
def test_a_sample_predicts_a_small_step_better_than_no_step_however_far_inputs_lie_from_zero(
    offset: float,
) -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(8, 16, 3, bias=False).double()
    smooth = nn.functional.avg_pool2d(torch.randn(1, 8, 130, 130, dtype=torch.float64), 3, 1)
    x = smooth + offset
    direction = torch.randn_like(convolution.weight)
    moved = convolution.weight.detach() + 0.002 * direction
    iteration = observed(convolution, x, 1024)
    expected = variance_at(convolution, x, moved)
    prediction = predicted_variance(iteration, convolution, moved)
    error = float((prediction / expected - 1).abs().median())
    assert error < 0.5 * float((iteration.variance / expected - 1).abs().median())


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 16), st.integers(1, 100_000))
def test_at_least_the_wanted_number_of_positions_remains(
    rows: int, columns: int, batch: int, wanted: int
) -> None:
    stride = sampling_stride(rows, columns, batch, wanted)
    assert stride >= 1
    remaining = len(range(0, rows, stride)) * len(range(0, columns, stride)) * batch
    assert remaining >= min(wanted, rows * columns * batch)


def test_large_maps_are_sampled_and_small_ones_are_not() -> None:
    assert sampling_stride(1000, 1200, 1, 1024) > 30
    assert sampling_stride(32, 32, 1, 1024) == 1
    assert sampling_stride(1000, 1200, 1, None) == 1
    torch.manual_seed(0)
    convolution = nn.Conv2d(4, 6, 3)
    small, large = torch.randn(1, 4, 12, 12), torch.randn(1, 4, 60, 60)
    for x, sampled in ((small, False), (large, True)):
        some, every = observed(convolution, x, 100), observed(convolution, x, None)
        assert torch.equal(some.variance_slope, every.variance_slope) != sampled
        for name in ("mean", "variance", "mean_patch", "mean_response"):
            assert torch.equal(getattr(some, name), getattr(every, name)), name


@pytest.mark.parametrize("background", [0.0, 1.0, -20.0])
@pytest.mark.parametrize("activity", [-1.0, 0.2, 5.0])
def test_a_sample_that_misses_all_activity_is_not_scaled(
    background: float, activity: float
) -> None:
    convolution = nn.Conv2d(1, 1, 1, bias=False).double()
    nn.init.ones_(convolution.weight)
    x = torch.full((1, 1, 64, 64), background, dtype=torch.float64)
    # A grid of 64 positions out of 64x64 takes every 8th row and column, from the first.
    x[:, :, 1::8, 1::8] += activity
    iteration = observed(convolution, x, 64)
    # The share f = 1/64 of the positions differs from the grid by A: the grid lies f A from the
    # mean and the variance is f (1 - f) A^2. Unscaled, <D, w> is 2 (f A)^2: 1/63 of the full one.
    expected = 2 * iteration.variance / 63
    torch.testing.assert_close(iteration.variance_slope[0], expected, rtol=1e-9, atol=1e-12)


def test_a_blank_map_has_a_finite_slope() -> None:
    iteration = observed(nn.Conv2d(3, 4, 3), torch.full((1, 3, 50, 50), 0.7), 64)
    assert all(value.isfinite().all() for value in iteration if isinstance(value, Tensor))


def trained(seed: int = 0, steps: int = 5, **options: Any) -> nn.Module:
    """Return a convolution and its layer after forward passes with moving weights."""
    torch.manual_seed(seed)
    convolution = nn.Conv2d(3, 4, 3, padding=1)
    layer = CrossIterationBatchNorm2d(4, window_size=4, **options).bind(convolution)
    model = nn.Sequential(convolution, layer)
    for _ in range(steps):
        model(torch.randn(1, 3, 8, 8)).pow(3).sum().backward()
        with torch.no_grad():
            convolution.weight.add_(0.01 * torch.randn_like(convolution.weight))
    return model


def ring(model: nn.Module) -> RingWindow:
    window = model.get_submodule("1.window")
    assert isinstance(window, RingWindow)
    return window


BFLOAT16: dict[str, Any] = {"history_dtype": torch.bfloat16}


def test_slopes_in_bfloat16_take_half_the_memory_and_leave_the_statistics_alone() -> None:
    full, half = (ring(trained(**options)) for options in ({}, BFLOAT16))
    assert half.variance_slopes.dtype == torch.bfloat16
    assert 2 * half.variance_slopes.nbytes == full.variance_slopes.nbytes
    torch.testing.assert_close(half.variance_slopes, full.variance_slopes.bfloat16())
    for name in ("positions", "means", "variances", "mean_patches", "mean_responses"):
        assert torch.equal(getattr(half, name), getattr(full, name)), name


def test_slopes_in_bfloat16_predict_an_unchanged_weight_exactly() -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(4, 6, 3)
    iteration = observed(convolution, torch.randn(1, 4, 12, 12), None)
    window = RingWindow(3, convolution.weight, 1, slope_dtype=torch.bfloat16)
    for _ in range(3):
        window.record(iteration, convolution.weight)
    variances = window.estimates(convolution.weight, None).variances
    # The response then and now may add in another order, which is all that may differ.
    torch.testing.assert_close(variances, iteration.variance.expand_as(variances))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_casting_the_module_keeps_slopes_in_bfloat16(dtype: torch.dtype) -> None:
    model = trained(**BFLOAT16)
    before = {name: value.clone() for name, value in ring(model).named_buffers()}
    model.to(dtype)
    wanted = torch.promote_types(dtype, torch.float32)
    for name, value in ring(model).named_buffers():
        if name == "variance_slopes":
            assert value.dtype == torch.bfloat16
        elif value.is_floating_point():
            assert value.dtype == wanted
        assert torch.equal(value, before[name].to(value.dtype)), name


def test_copies_and_checkpoints_keep_slopes_in_bfloat16() -> None:
    model = trained(**BFLOAT16)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    loaded = trained(seed=1, steps=0, **BFLOAT16)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    x = torch.randn(1, 3, 8, 8)
    twins = [copy.deepcopy(model), loaded]
    expected = model(x)
    for twin in twins:
        assert ring(twin).variance_slopes.dtype == torch.bfloat16
        assert torch.equal(twin(x), expected)
        assert torch.equal(ring(twin).variance_slopes, ring(model).variance_slopes)


@pytest.mark.parametrize("options", [{}, BFLOAT16, {"history": "exponential"}])
def test_sampling_changes_the_slopes_of_every_history_and_no_mean(options: dict[str, Any]) -> None:
    sampled, whole = trained(slope_positions=8, **options), trained(**options)
    expected = whole.state_dict()
    for name, value in sampled.state_dict().items():
        if "slope" in name:
            assert not torch.equal(value, expected[name]), name
        elif "mean" in name or "position" in name:
            assert torch.equal(value, expected[name]), name
    assert sampled(torch.randn(1, 3, 8, 8)).isfinite().all()


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(1, 200))
def test_a_sampled_layer_gives_the_same_output_while_the_weight_stands_still(wanted: int) -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(2, 3, 3).double()
    layers = [
        CrossIterationBatchNorm2d(3, window_size=3, slope_positions=positions).double()
        for positions in (wanted, None)
    ]
    for layer in layers:
        layer.bind(convolution)
    for _ in range(3):
        y = convolution(torch.randn(1, 2, 12, 14, dtype=torch.float64))
        sampled, whole = (layer(y) for layer in layers)
        torch.testing.assert_close(sampled, whole, rtol=1e-10, atol=1e-11)
