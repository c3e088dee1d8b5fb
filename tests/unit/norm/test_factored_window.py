"""Slopes of the variance kept as factors from a few positions."""

import copy
import io
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from norm import CrossIterationBatchNorm2d, OptionError, convert_batchnorm
from norm.convolution_moments import convolution_geometry
from norm.factored_window import FactoredWindow, factored_responses, is_smaller_factored
from norm.functional import WindowEstimates, batch_statistics
from norm.observation import ForwardPass
from norm.sampled_patches import outputs_at, patches_at, sampled_positions, stratified_places
from norm.window import RingWindow, Window
from tests.oracles.cross_iteration import GradientForm, assert_agrees
from tests.oracles.factored_slopes import FactoredOracle

# torch notes that it pads a copy for an even kernel, which is the asymmetric case on trial.
even_kernels = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
CPU = torch.device("cpu")

# Wide enough that three factors are fewer numbers than a slope.
CONVOLUTIONS = {
    "plain": lambda: nn.Conv2d(4, 12, 3, padding=1, bias=False),
    "biased": lambda: nn.Conv2d(4, 12, 3, padding=1),
    "1x1": lambda: nn.Conv2d(8, 12, 1, bias=False),
    "stride beyond kernel": lambda: nn.Conv2d(8, 12, 1, stride=2, bias=False),
    "oblong, strided": lambda: nn.Conv2d(6, 12, (1, 3), stride=(1, 2), padding=(0, 2), bias=False),
    "dilated": lambda: nn.Conv2d(4, 12, 3, padding=2, dilation=2, bias=False),
    "grouped": lambda: nn.Conv2d(4, 12, 3, padding=1, groups=2, bias=False),
    "same, even kernel": lambda: nn.Conv2d(2, 12, 4, padding="same", bias=False),
    "reflect": lambda: nn.Conv2d(4, 12, 3, padding=2, padding_mode="reflect"),
    "replicate": lambda: nn.Conv2d(4, 12, 3, padding=2, padding_mode="replicate"),
    "circular": lambda: nn.Conv2d(4, 12, 3, padding=2, padding_mode="circular"),
}
in_every_geometry = pytest.mark.parametrize("geometry", CONVOLUTIONS)
SIZES = [(2, 6, 7), (1, 8, 5), (2, 6, 7), (3, 5, 5), (2, 6, 7)]


@even_kernels
@in_every_geometry
def test_every_kind_of_convolution_matches_the_derivative_at_the_sampled_places(
    geometry: str,
) -> None:
    torch.manual_seed(0)
    convolution = CONVOLUTIONS[geometry]()
    assert is_smaller_factored(convolution.weight, convolution.groups, 3)
    assert_agrees(convolution, FactoredOracle(3), SIZES)


@pytest.mark.parametrize("gradient", ["full", "paper"])
@pytest.mark.parametrize("rho", [1.0, 0.5, 0.0])
def test_trust_gradient_and_length_of_the_step_are_those_of_whole_slopes(
    gradient: GradientForm, rho: float
) -> None:
    torch.manual_seed(0)
    oracle = FactoredOracle(3, rho=rho, gradient=gradient, d_max=0.3, r_max=1.2, rank=5)
    assert_agrees(nn.Conv2d(4, 12, 3, padding=1), oracle, SIZES)
    assert 0 < oracle.left_out < oracle.judged, "a region that keeps all or none proves nothing"


def estimates_of(
    window: Window, convolution: nn.Conv2d, frames: list[Tensor], movement: float
) -> list[WindowEstimates]:
    """Run the frames through the window, the weight moving between them, and return its answers."""
    generator = torch.Generator().manual_seed(5)
    convolution = copy.deepcopy(convolution)
    answers = []
    for x in frames:
        y = convolution(x).detach()
        answers.append(
            window.consult(ForwardPass(convolution, x, y, batch_statistics(y), "declared"))
        )
        noise = torch.randn(convolution.weight.shape, generator=generator, dtype=x.dtype)
        with torch.no_grad():
            convolution.weight.add_(movement * noise)
    return answers


def of_the_past(answer: WindowEstimates) -> list[tuple[Tensor, Tensor]]:
    """Return mean and variance of each entry that weighs anything, in any order of entries."""
    entries = zip(answer.means, answer.variances, answer.weights, strict=True)
    kept = [(mean, variance) for mean, variance, weight in entries if bool(weight.any())]
    return sorted(kept, key=lambda entry: float(entry[0][0]))


@even_kernels
@in_every_geometry
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_factors_of_every_position_are_the_whole_slope_also_on_smaller_maps(
    geometry: str, memory_format: torch.memory_format
) -> None:
    torch.manual_seed(0)
    convolution = CONVOLUTIONS[geometry]().double()
    frames = [
        torch.randn(n, convolution.in_channels, rows, columns, dtype=torch.float64) + 0.5
        for n, rows, columns in SIZES
    ]
    frames = [x.to(memory_format=memory_format) for x in frames]
    # Padding by two in both directions leaves the largest of them 3 * 81 positions.
    most = max(convolution(x)[:, 0].numel() for x in frames)
    whole = RingWindow(3, convolution.weight, convolution.groups)
    factored = FactoredWindow(3, convolution.weight, convolution.groups, rank=most)
    answers = [estimates_of(window, convolution, frames, 0.1) for window in (whole, factored)]
    for expected, actual in zip(*answers, strict=True):
        torch.testing.assert_close(
            of_the_past(actual), of_the_past(expected), rtol=1e-9, atol=1e-10
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_prediction_for_an_unchanged_weight_is_what_was_measured(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(4, 12, 3, padding=1).to(dtype)
    frames = [(torch.randn(1, 4, 20, 20) + 2).to(dtype) for _ in range(4)]
    window = FactoredWindow(3, convolution.weight, 1, rank=3)
    answer = estimates_of(window, convolution, frames, 0.0)[-1]
    measured = [batch_statistics(convolution(x)) for x in frames]
    bias = convolution.bias
    assert bias is not None
    for entry, statistics in enumerate(measured[:3]):
        assert torch.equal(answer.variances[entry], statistics.variance)
        # The bias is taken off and added again.
        torch.testing.assert_close(answer.means[entry], statistics.mean, rtol=1e-6, atol=1e-6)


@even_kernels
@in_every_geometry
def test_patches_times_weight_are_the_outputs_at_the_same_places(geometry: str) -> None:
    torch.manual_seed(0)
    convolution = CONVOLUTIONS[geometry]().double()
    x = torch.randn(2, convolution.in_channels, 7, 9, dtype=torch.float64)
    y = convolution(x).detach()
    described = convolution_geometry(convolution, x, (y.shape[2], y.shape[3]), "declared")
    positions = sampled_positions(described, 2, 11, x.dtype, CPU)
    responses = factored_responses(
        patches_at(x, positions, convolution.groups), convolution.weight.detach()
    )
    if convolution.bias is not None:
        responses = responses + convolution.bias.detach()
    torch.testing.assert_close(responses, outputs_at(y, positions), rtol=1e-10, atol=1e-11)


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 40))
def test_places_are_distinct_and_one_of_each_part(rows: int, columns: int, count: int) -> None:
    places = stratified_places(rows, columns, count, CPU).tolist()
    total = rows * columns
    assert len(places) == count
    assert len(set(places)) == min(count, total)
    if total > count:
        parts = [number * total // count for number in range(count + 1)]
        assert all(
            parts[number] <= place < parts[number + 1] for number, place in enumerate(places)
        )


@pytest.mark.parametrize("count", [4, 8, 16])
@pytest.mark.parametrize("size_px", [(32, 32), (64, 64), (56, 80), (1250, 1000)])
def test_places_spread_over_both_axes_of_a_map(size_px: tuple[int, int], count: int) -> None:
    places = stratified_places(*size_px, count, CPU)
    for axis, at in enumerate((places // size_px[1], places % size_px[1])):
        # No stretch of an axis longer than this share of it goes unseen.
        ends = torch.tensor([0, size_px[axis]])
        gaps = torch.cat([at, ends]).sort().values.diff()
        assert float(gaps.max()) / size_px[axis] <= 2.4 / count


def wide(**options: Any) -> nn.Module:
    """Return convolutions with cross-iteration normalizations: factored, depthwise, factored."""
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 24, 1, bias=False),
        nn.BatchNorm2d(24),
    )
    example = torch.zeros(1, 3, 8, 8)
    model, report = convert_batchnorm(plain, example, kind="cbn", window_size=4, **options)
    assert not report.left
    return model


def windows(model: nn.Module) -> list[Window]:
    return [module for module in model.modules() if isinstance(module, Window)]


def train(model: nn.Module, steps: int, first: int = 0) -> list[Tensor]:
    outputs = []
    for step in range(first, first + steps):
        side = 8 + step % 3
        x = torch.randn(1, 3, side, 8, generator=torch.Generator().manual_seed(step))
        output = model(x)
        output.pow(3).mean().backward()
        with torch.no_grad():
            for parameter in model.parameters():
                assert parameter.grad is not None
                parameter.sub_(0.05 * parameter.grad)
                parameter.grad = None
        outputs.append(output.detach())
    return outputs


def test_factors_are_kept_where_they_are_smaller_and_whole_slopes_elsewhere() -> None:
    kinds = [type(window) for window in windows(wide(slope_rank=4))]
    assert kinds == [FactoredWindow, RingWindow, FactoredWindow]
    assert {type(window) for window in windows(wide())} == {RingWindow}
    # Four factors of 144 + 16 numbers and a mean patch, in the place of a slope of 16 * 144.
    convolution = nn.Conv2d(16, 16, 3)
    factored = FactoredWindow(7, convolution.weight, 1, rank=4)
    kept = sum(buffer.numel() for buffer in factored.buffers() if buffer.is_floating_point())
    assert kept == 8 * ((4 + 1) * 144 + 4 * 16 + 5 * 16)


@pytest.mark.parametrize("steps", [2, 9])
def test_a_resumed_run_goes_on_bit_for_bit_in_the_middle_of_a_window(steps: int) -> None:
    model = wide(slope_rank=4)
    train(model, steps)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    resumed = wide(slope_rank=4)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    copied = copy.deepcopy(model)
    expected = train(model, 6, first=steps)
    for twin in (resumed, copied):
        for actual, wanted in zip(train(twin, 6, first=steps), expected, strict=True):
            assert torch.equal(actual, wanted)


@pytest.mark.parametrize(("saved", "loaded"), [(None, 4), (4, None)])
def test_a_checkpoint_of_the_other_form_is_refused_and_says_what_to_do(
    saved: int | None, loaded: int | None
) -> None:
    model, other = wide(slope_rank=saved), wide(slope_rank=loaded)
    train(model, 3)
    for strict in (True, False):
        with pytest.raises(
            RuntimeError, match=r"'1\.window\.\*' was saved by another form of window"
        ):
            other.load_state_dict(model.state_dict(), strict=strict)
    without = {k: v for k, v in model.state_dict().items() if ".window." not in k}
    other.load_state_dict(without)
    assert [window.filled for window in windows(other)] == [0, 0, 0]


def test_the_window_fills_up_to_its_length_and_a_bad_frame_leaves_it_with_the_window() -> None:
    model = wide(slope_rank=4)
    # A place more than the window's length is written, and the oldest one is not read again.
    for step, filled in enumerate([1, 2, 3, 3, 3]):
        train(model, 1, first=step)
        assert [window.filled for window in windows(model)] == [filled] * 3
    with torch.no_grad():
        model(torch.full((1, 3, 8, 8), math.nan))
        for step in range(5):
            x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(step))
            assert model(x).isfinite().all()
    for window in windows(model):
        assert all(buffer.isfinite().all() for buffer in window.buffers())


def test_a_single_value_a_channel_is_normalized_by_the_window() -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(4, 12, 3)
    layer = CrossIterationBatchNorm2d(12, window_size=4, slope_rank=3).bind(convolution)
    for _ in range(3):
        layer(convolution(torch.randn(1, 4, 8, 8)))
    output = layer(convolution(torch.randn(1, 4, 3, 3)))
    assert output.isfinite().all()
    assert output.abs().max() > 0


def test_bfloat16_autocast_normalizes_as_float32_does_while_the_weight_moves() -> None:
    models = [wide(slope_rank=4, d_max=math.inf, r_max=math.inf) for _ in range(2)]
    for step in range(6):
        x = torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(step))
        generator = torch.Generator().manual_seed(step)
        with torch.no_grad():
            expected = models[0](x)
            with torch.autocast("cpu", torch.bfloat16):
                actual = models[1](x)
            for pair in zip(*(model.parameters() for model in models), strict=True):
                noise = 0.01 * torch.randn(pair[0].shape, generator=generator)
                for parameter in pair:
                    parameter.add_(noise)
        # Eight bits, three layers deep; a window gone wrong would be off by whole deviations.
        assert float((actual.float() - expected).square().mean().sqrt()) < 0.02


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slope_rank": 0}, "slope_rank must be at least 1 or None, got 0"),
        ({"slope_rank": 8, "history": "exponential"}, "slope_rank 8 is for the ring"),
        ({"slope_rank": 8, "history_dtype": torch.bfloat16}, "is for whole slopes"),
    ],
)
def test_what_has_no_factors_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        CrossIterationBatchNorm2d(4, **options)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(1, 6))
def test_a_factored_layer_gives_the_output_of_a_whole_one_while_the_weight_stands_still(
    rank: int,
) -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(6, 20, 3).double()
    layers = [
        CrossIterationBatchNorm2d(20, window_size=3, slope_rank=wanted).double()
        for wanted in (rank, None)
    ]
    for layer in layers:
        layer.bind(convolution)
    for _ in range(4):
        y = convolution(torch.randn(1, 6, 9, 8, dtype=torch.float64))
        factored, whole = (layer(y) for layer in layers)
        torch.testing.assert_close(factored, whole, rtol=1e-10, atol=1e-11)
