"""A moving average over all past iterations in the memory of one."""

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from norm import CrossIterationBatchNorm2d, OptionError
from norm.functional import WindowEstimates, batch_statistics
from norm.observation import observe
from norm.window import ExponentialWindow


def exponential_model(window_size: int = 8, **options: Any) -> nn.Sequential:
    torch.manual_seed(0)
    convolution = nn.Conv2d(2, 3, 3, padding=1)
    layer = CrossIterationBatchNorm2d(3, window_size=window_size, history="exponential", **options)
    return nn.Sequential(convolution, layer.bind(convolution))


def window_of(model: nn.Module) -> ExponentialWindow:
    window = model.get_submodule("1.window")
    assert isinstance(window, ExponentialWindow)
    return window


def convolution_of(model: nn.Module) -> nn.Conv2d:
    convolution = model.get_submodule("0")
    assert isinstance(convolution, nn.Conv2d)
    return convolution


def estimates_of(model: nn.Module) -> WindowEstimates:
    convolution = convolution_of(model)
    return window_of(model).estimates(convolution.weight, convolution.bias)


def train(model: nn.Module, steps: range) -> list[Tensor]:
    """Run steps whose inputs and weight changes depend on the step's number; return outputs."""
    outputs = []
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        output = model(torch.randn(1, 2, 6, 6, generator=generator))
        outputs.append(output.detach())
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return outputs


def record(window: ExponentialWindow, convolution: nn.Conv2d, x: Tensor) -> Tensor:
    """Let the window see one input; return the convolution's output without its bias."""
    y = convolution(x).detach()
    iteration = observe(
        convolution, x, y, batch_statistics(y), rule="declared", slope_positions=None
    )
    window.record(iteration, convolution.weight)
    bias = 0 if convolution.bias is None else convolution.bias.detach().view(1, -1, 1, 1)
    output: Tensor = y - bias
    return output


def decayed_statistics(outputs: list[Tensor], length: int) -> tuple[Tensor, Tensor]:
    """Return mean and variance of all values, each weighing (1 - 1/length)^age, in float64."""
    values = [y.double().transpose(0, 1).flatten(1) for y in outputs]
    decay = 1 - 1 / length
    weights = torch.cat(
        [
            torch.full((value.shape[1],), decay**age, dtype=torch.float64)
            for age, value in enumerate(reversed(values))
        ][::-1]
    )
    weights = weights / weights.sum()
    everything = torch.cat(values, dim=1)
    mean = (everything * weights).sum(1)
    return mean, ((everything - mean[:, None]).square() * weights).sum(1)


def test_memory_does_not_depend_on_the_length() -> None:
    sizes = [
        {name: value.nbytes for name, value in window_of(exponential_model(length)).named_buffers()}
        for length in (2, 8, 512)
    ]
    assert sizes[0] == sizes[1] == sizes[2]
    # One tensor of the weight's shape, float32; the rest is a patch and a few numbers a channel.
    assert sizes[0]["variance_slope"] == 4 * nn.Conv2d(2, 3, 3).weight.numel()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_under_a_still_weight_it_is_the_decayed_statistics_of_all_values(
    dtype: torch.dtype,
) -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(2, 3, 3).to(dtype)
    window = ExponentialWindow(16, convolution.weight, 1)
    outputs = []
    for step in range(200):
        # Brightness drifts, so most of the variance lies between the iterations.
        x = torch.randn(1 + step % 3, 2, 6, 5 + step % 4, dtype=dtype) + step / 20
        outputs.append(record(window, convolution, x))
    mean, variance = decayed_statistics(outputs, 16)
    past = window.estimates(convolution.weight, None)
    # Roundings of old steps decay along with them, so 200 steps cost little more than 16.
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(past.means[0].double(), mean, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(past.variances[0].double(), variance, rtol=tolerance, atol=0)


def test_iterations_weigh_by_their_positions() -> None:
    convolution = nn.Conv2d(1, 1, 1, bias=False).double()
    nn.init.ones_(convolution.weight)
    window = ExponentialWindow(2, convolution.weight, 1)
    for level, side in ((0.0, 4), (3.0, 2)):
        record(window, convolution, torch.full((1, 1, side, side), level, dtype=torch.float64))
    past = window.estimates(convolution.weight, None)
    # By hand: 16 positions decayed to 8 at level 0, and 4 at level 3; a third weighs level 3.
    torch.testing.assert_close(past.means.item(), 1.0)
    torch.testing.assert_close(past.variances.item(), 2.0)
    torch.testing.assert_close(past.weights.item(), 6.0)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_batch_that_is_not_finite_is_not_recorded(bad: float) -> None:
    model = exponential_model()
    train(model, range(3))
    before = copy.deepcopy(window_of(model).state_dict())
    expected = estimates_of(model)
    x = torch.randn(1, 2, 6, 6)
    x[0, 0, 2, 3] = bad
    model(x)
    for name in ("iterations", "positions", "mean_patch", "variance_slope"):
        assert torch.equal(window_of(model).state_dict()[name], before[name]), name
    # The rest is brought to today's weight, which changes no estimate but by rounding.
    for now, then in zip(estimates_of(model), expected, strict=True):
        torch.testing.assert_close(now, then)
    assert model(torch.randn(1, 2, 6, 6)).isfinite().all()


def test_a_first_batch_that_is_not_finite_leaves_the_window_empty() -> None:
    model = exponential_model()
    model(torch.full((1, 2, 6, 6), torch.nan))
    assert window_of(model).filled == 0
    assert all(not value.any() for value in window_of(model).buffers())
    assert model(torch.randn(1, 2, 6, 6)).isfinite().all()


def test_a_finite_batch_whose_mean_overflows_when_squared_is_not_recorded() -> None:
    model = exponential_model()
    train(model, range(3))
    # Constant, so the variance is finite; the mean's square is beyond float32.
    convolution_of(model).padding = (0, 0)
    model(torch.full((1, 2, 6, 6), 1e25))
    convolution_of(model).padding = (1, 1)
    assert window_of(model).filled == 3
    assert all(value.isfinite().all() for value in window_of(model).buffers())


def test_a_resumed_run_goes_on_bit_for_bit() -> None:
    uninterrupted = exponential_model()
    train(uninterrupted, range(5))
    file = io.BytesIO()
    torch.save(uninterrupted.state_dict(), file)
    expected = train(uninterrupted, range(5, 9))
    file.seek(0)
    resumed = exponential_model()
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert all(map(torch.equal, train(resumed, range(5, 9)), expected))
    for name, value in uninterrupted.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_a_deep_copy_goes_on_by_itself() -> None:
    model = exponential_model()
    train(model, range(3))
    twin = copy.deepcopy(model)
    before = copy.deepcopy(model.state_dict())
    expected = train(twin, range(3, 6))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), f"the copy wrote {name} of the original"
    assert all(map(torch.equal, train(model, range(3, 6)), expected))


def test_casting_the_module_to_bfloat16_keeps_the_average_in_float32() -> None:
    model = exponential_model()
    train(model, range(3))
    before = {name: value.clone() for name, value in window_of(model).named_buffers()}
    model.to(torch.bfloat16)
    for name, value in window_of(model).named_buffers():
        assert value.dtype == before[name].dtype
        assert torch.equal(value, before[name]), name
    assert model(torch.randn(1, 2, 6, 6, dtype=torch.bfloat16)).isfinite().all()


@pytest.mark.parametrize("growth", [0.0, 1e-6])
def test_a_mean_far_from_zero_does_not_cancel(growth: float) -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(1, 1, 1, bias=False)
    nn.init.ones_(convolution.weight)
    window = ExponentialWindow(8, convolution.weight, 1)
    inputs = [1e4 + 1e-2 * torch.randn(1, 1, 64, 64) for _ in range(24)]
    for x in inputs:
        record(window, convolution, x)
        with torch.no_grad():
            convolution.weight.mul_(1 + growth)
    outputs = [x.double() * convolution.weight.detach().double() for x in inputs]
    mean, variance = decayed_statistics(outputs, 8)
    past = window.estimates(convolution.weight, None)
    # float32 near 1e4 is a grid of 1e-3: a tenth of the deviation, so the mean is off by less than
    # that and the variance by a few percent. E[y^2] - E[y]^2 would be a multiple of 8.
    torch.testing.assert_close(past.means[0].double(), mean, rtol=0, atol=2e-3)
    torch.testing.assert_close(past.variances[0].double(), variance, rtol=0.05, atol=0)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"history_dtype": torch.bfloat16}, "bfloat16 is for the ring"),
        ({"history_dtype": torch.float16}, "float16"),
        ({"variance": "paper"}, "'paper' is for the ring"),
    ],
)
def test_options_of_the_ring_are_refused(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        CrossIterationBatchNorm2d(3, history="exponential", **bad)


def test_an_unknown_history_is_refused() -> None:
    with pytest.raises(OptionError, match="'exp'"):
        CrossIterationBatchNorm2d(3, history="exp")  # type: ignore[arg-type]  # The mistake on trial.
