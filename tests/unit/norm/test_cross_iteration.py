import copy
import gc
import io
import math
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from norm import CrossIterationBatchNorm2d, HandoverError, OptionError, convert_batchnorm
from norm.convolution_moments import mean_response
from norm.errors import BindingError
from norm.window import RingWindow

Layer = CrossIterationBatchNorm2d


class Pair(nn.Module):
    """A convolution and its cross-iteration batch normalization."""

    def __init__(self, convolution: nn.Conv2d, **options: Any) -> None:
        super().__init__()
        self.convolution = convolution
        self.norm = Layer(convolution.out_channels, **options).bind(convolution)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.norm(self.convolution(x))
        return output


def small_pair(**options: Any) -> Pair:
    torch.manual_seed(0)
    return Pair(nn.Conv2d(2, 3, 3, padding=1), **{"window_size": 3, **options})


def move_weights(module: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))


def train(module: nn.Module, steps: int, first: int = 0) -> list[Tensor]:
    """Run steps on inputs that depend on the step's number alone; return outputs, gradients."""
    seen: list[Tensor] = []
    for step in range(first, first + steps):
        x = torch.randn(1, 2, 6, 6, generator=torch.Generator().manual_seed(step))
        output = module(x)
        module.zero_grad()
        output.pow(3).sum().backward()
        seen += [
            output.detach(),
            *(p.grad.clone() for p in module.parameters() if p.grad is not None),
        ]
        move_weights(module, step)
    return seen


@pytest.mark.parametrize("gradient", ["full", "paper"])
def test_a_window_of_one_is_batch_normalization(gradient: str) -> None:
    torch.manual_seed(0)
    ours = Layer(3, window_size=1, gradient=gradient).double()  # type: ignore[arg-type]
    theirs = nn.BatchNorm2d(3).double()
    nn.init.normal_(ours.weight)
    theirs.load_state_dict(ours.state_dict())
    for _ in range(3):
        y = torch.randn(2, 3, 5, 4, dtype=torch.float64, requires_grad=True)
        direction = torch.randn_like(y)
        results = []
        for layer in (ours, theirs):
            output = layer(y)
            leaves = (y, layer.weight, layer.bias)
            results.append([output, *torch.autograd.grad(output, leaves, direction)])
        torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("gradient", ["full", "paper"])
def test_gradient_of_a_window_of_one_is_the_true_one(gradient: str) -> None:
    torch.manual_seed(0)
    layer = Layer(2, window_size=1, gradient=gradient).double()  # type: ignore[arg-type]
    nn.init.normal_(layer.weight)
    y = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (y,))


def test_cumulative_average_is_batch_normalizations() -> None:
    pair = small_pair(momentum=None)
    plain = nn.BatchNorm2d(3, momentum=None)
    for seed in range(3):
        x = torch.randn(2, 2, 5, 5, generator=torch.Generator().manual_seed(seed))
        plain(pair.convolution(x).detach())
        pair(x)
    torch.testing.assert_close(pair.norm.running_mean, plain.running_mean)
    torch.testing.assert_close(pair.norm.running_var, plain.running_var)


def test_micro_batches_under_unchanged_weights_pool_as_one_batch() -> None:
    # The micro-batches of one step differ by chance alone, and none of them is to be left out.
    pair = small_pair(window_size=4, d_max=math.inf, r_max=math.inf).double()
    x = torch.randn(4, 2, 6, 6, dtype=torch.float64)
    outputs = [pair(image[None]) for image in x]
    whole = nn.functional.batch_norm(pair.convolution(x), None, None, training=True)
    torch.testing.assert_close(outputs[-1], whole[-1:], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("gradient", ["full", "paper"])
def test_a_run_resumed_in_the_middle_of_a_window_goes_on_bit_for_bit(gradient: str) -> None:
    options = {"window_size": 4, "burn_in_steps": 2, "gradient": gradient}
    uninterrupted = small_pair(**options)
    train(uninterrupted, 6)
    file = io.BytesIO()
    torch.save(uninterrupted.state_dict(), file)
    expected = train(uninterrupted, 4, first=6)
    file.seek(0)
    resumed = small_pair(**options)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert all(map(torch.equal, train(resumed, 4, first=6), expected))
    for name, value in uninterrupted.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_a_deep_copy_is_bound_to_its_own_convolution() -> None:
    pair = small_pair()
    train(pair, 2)
    twin = copy.deepcopy(pair)
    window = pair.norm.window
    assert isinstance(window, RingWindow)
    before = {name: value.clone() for name, value in window.named_buffers()}
    expected = train(copy.deepcopy(pair), 3, first=2)
    assert all(map(torch.equal, train(twin, 3, first=2), expected))
    for name, value in window.named_buffers():
        assert torch.equal(value, before[name]), "the copy wrote into the original"
    assert all(map(torch.equal, train(pair, 3, first=2), expected))


def test_casting_the_module_keeps_the_history_in_full_precision() -> None:
    pair = small_pair()
    train(pair, 3)
    window = pair.norm.window
    assert isinstance(window, RingWindow)
    before = window.means.clone()
    pair.to(torch.bfloat16)
    assert torch.equal(window.means, before)
    pair(torch.randn(1, 2, 6, 6, dtype=torch.bfloat16)).sum().backward()
    pair.double()
    assert window.variance_slopes.dtype == torch.float64
    assert pair(torch.randn(1, 2, 6, 6, dtype=torch.float64)).isfinite().all()


def test_a_layer_that_was_never_bound_raises_and_is_no_silent_batch_normalization() -> None:
    with pytest.raises(HandoverError, match="not bound"):
        Layer(3)(torch.randn(2, 3, 4, 4))
    assert Layer(3).eval()(torch.randn(2, 3, 4, 4)).shape == (2, 3, 4, 4)


def test_a_layer_whose_convolution_did_not_run_raises() -> None:
    pair = small_pair()
    with pytest.raises(HandoverError, match="has not run"):
        pair.norm(torch.randn(1, 3, 6, 6))


def test_a_changed_input_raises() -> None:
    pair = small_pair()
    y = pair.convolution(torch.randn(1, 2, 6, 6))
    with pytest.raises(HandoverError, match="not what its convolution returned"):
        pair.norm(y * 2)
    y = pair.convolution(torch.randn(1, 2, 6, 6))
    with pytest.raises(HandoverError, match="not what its convolution returned"):
        pair.norm(y.mul_(2))


def test_a_shallow_copy_of_the_layer_raises() -> None:
    pair = small_pair()
    replica = copy.copy(pair.norm)
    with pytest.raises(HandoverError, match="shallow copy"):
        replica(pair.convolution(torch.randn(1, 2, 6, 6)))


def test_binding_needs_a_matching_convolution() -> None:
    with pytest.raises(BindingError, match="4 output channels"):
        Layer(3).bind(nn.Conv2d(2, 4, 1))
    with pytest.raises(BindingError, match="ConvTranspose2d"):
        Layer(3).bind(nn.ConvTranspose2d(2, 3, 1))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "bad",
    [
        {"window_size": 0},
        {"burn_in_steps": -1},
        {"rho": 1.5},
        {"variance": "biased"},
        {"gradient": "half"},
        {"d_max": -0.5},
        {"r_max": 0.5},
    ],
)
def test_an_option_out_of_range_is_repeated_in_the_error(bad: dict[str, Any]) -> None:
    (value,) = bad.values()
    with pytest.raises(OptionError, match=str(value)):
        Layer(3, **bad)


def test_no_input_is_held_after_the_forward_pass() -> None:
    pair = small_pair()
    x = torch.randn(1, 2, 6, 6)
    alive = weakref.ref(x)
    with torch.no_grad():
        pair(x)
    del x
    gc.collect()
    assert alive() is None


def test_no_input_is_held_where_the_layer_will_not_ask_for_it() -> None:
    pair = small_pair().eval()
    x = torch.randn(1, 2, 6, 6)
    alive = weakref.ref(x)
    with torch.no_grad():
        pair.convolution(x)
    del x
    gc.collect()
    assert alive() is None


def test_a_model_can_be_copied_between_its_convolution_and_its_normalization() -> None:
    pair = small_pair()
    # The input is no leaf, which a deep copy could not take along.
    y = pair.convolution(torch.randn(1, 2, 6, 6, requires_grad=True) * 2)
    twin = copy.deepcopy(pair)
    assert pair.norm(y).shape == y.shape
    with pytest.raises(HandoverError, match="has not run"):
        twin.norm(y)


def test_the_convolution_may_get_its_input_by_name() -> None:
    pair, twin = small_pair(), small_pair()
    x = torch.randn(1, 2, 6, 6)
    assert torch.equal(pair.norm(pair.convolution(input=x)), twin(x))


def test_without_parameters_or_running_statistics_it_still_normalizes() -> None:
    pair = small_pair(affine=False, track_running_stats=False)
    x = torch.randn(2, 2, 6, 6)
    expected = nn.functional.batch_norm(pair.convolution(x), None, None, training=True)
    for mode in (True, False):
        output = pair.train(mode)(x)
        torch.testing.assert_close(output, expected)
        output.pow(3).sum().backward()
    assert list(pair.norm.parameters()) == []


def test_the_printout_shows_the_options() -> None:
    assert "window_size=3" in repr(small_pair())


def test_a_blank_image_gives_finite_outputs_and_gradients() -> None:
    pair = small_pair()
    for _ in range(4):
        x = torch.full((1, 2, 6, 6), 0.7, requires_grad=True)
        # Without padding the map is constant and its variance exactly zero.
        pair.convolution.padding = (0, 0)
        output = pair(x)
        output.square().sum().backward()
        assert output.isfinite().all()
        assert x.grad is not None
        assert x.grad.isfinite().all()


def test_a_single_value_is_normalized_by_the_window() -> None:
    torch.manual_seed(0)
    pair = Pair(nn.Conv2d(2, 3, 1), window_size=4).double()
    values = torch.randn(4, 2, 1, 1, dtype=torch.float64)
    first = pair(values[:1])
    torch.testing.assert_close(first, torch.zeros_like(first))
    assert pair.norm.state_dict()["running_var"].tolist() == [1.0] * 3
    outputs = [first, *(pair(value[None]) for value in values[1:])]
    whole = nn.functional.batch_norm(pair.convolution(values), None, None, training=True)
    torch.testing.assert_close(outputs[-1], whole[-1:], rtol=1e-10, atol=1e-10)
    # Windows of 2, 3 and 4 values have moved the running variance towards their own.
    running = torch.ones(3, dtype=torch.float64)
    for count in (2, 3, 4):
        window = pair.convolution(values[:count]).var((0, 2, 3), correction=1)
        running = 0.9 * running + 0.1 * window
    torch.testing.assert_close(pair.norm.running_var, running, rtol=1e-10, atol=1e-10)


def test_a_single_value_without_a_window_raises_as_batch_normalization_does() -> None:
    for layer in (Layer(3, window_size=1), nn.BatchNorm2d(3)):
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            layer(torch.randn(1, 3, 1, 1))


def test_one_overflown_batch_does_not_poison_the_window() -> None:
    pair = small_pair()
    pair(torch.randn(1, 2, 6, 6))
    pair(torch.full((1, 2, 6, 6), torch.inf))
    assert pair(torch.randn(1, 2, 6, 6)).isfinite().all()


def test_a_frozen_convolution_still_passes_gradients_to_its_input() -> None:
    pair = small_pair()
    pair.convolution.requires_grad_(False)
    x = torch.randn(1, 2, 6, 6, requires_grad=True)
    pair(x).pow(3).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    assert pair.convolution.weight.grad is None


def test_no_grad_in_training_mode_moves_the_same_statistics() -> None:
    pair, twin = small_pair(), small_pair()
    x = torch.randn(1, 2, 6, 6)
    with torch.no_grad():
        quiet = pair(x)
    assert torch.equal(quiet, twin(x))
    for name, value in twin.state_dict().items():
        assert torch.equal(pair.state_dict()[name], value), name


def test_eval_mode_is_batch_normalization_and_changes_nothing() -> None:
    pair = small_pair()
    train(pair, 3)
    plain = nn.BatchNorm2d(3)
    plain.load_state_dict(
        {k: v for k, v in pair.norm.state_dict().items() if not k.startswith("window.")}
    )
    pair.eval()
    before = copy.deepcopy(pair.state_dict())
    x = torch.randn(1, 2, 6, 6)
    assert torch.equal(pair(x), plain.eval()(pair.convolution(x)))
    for name, value in pair.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_channels_last_gives_the_same_values_in_the_same_format() -> None:
    pair = small_pair()
    twin = copy.deepcopy(pair).to(memory_format=torch.channels_last)
    for seed in range(4):
        x = torch.randn(2, 2, 6, 6, generator=torch.Generator().manual_seed(seed))
        output = twin(x.contiguous(memory_format=torch.channels_last))
        assert output.is_contiguous(memory_format=torch.channels_last)
        # Another kernel sums in another order.
        torch.testing.assert_close(output, pair(x), rtol=1e-5, atol=1e-5)


def test_bfloat16_autocast_keeps_float32_statistics() -> None:
    pair, reference = small_pair(), small_pair()
    for seed in range(4):
        x = torch.randn(2, 2, 6, 6, generator=torch.Generator().manual_seed(seed))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = pair(x)
        assert output.dtype == torch.bfloat16
        output.float().pow(2).sum().backward()
        # bfloat16 has eight bits: 0.4 % of values up to 3, in the convolution and in the output.
        torch.testing.assert_close(output.float(), reference(x), rtol=0.02, atol=0.03)
    window = pair.norm.window
    assert isinstance(window, RingWindow)
    assert {b.dtype for b in window.buffers() if b.is_floating_point()} == {torch.float32}
    # A response that autocast had computed would be off by up to 0.4 %.
    responses = mean_response(window.mean_patches, pair.convolution.weight)
    torch.testing.assert_close(window.mean_responses, responses, rtol=1e-5, atol=1e-6)
    assert pair.convolution.weight.grad is not None
    assert pair.convolution.weight.grad.isfinite().all()


def test_burn_in_is_batch_normalization_while_the_window_fills() -> None:
    pair, plain = small_pair(burn_in_steps=2), small_pair(window_size=1)
    same = []
    for step in range(5):
        # Two micro-batches a step: burn-in counts steps, not forward passes.
        for micro in range(2):
            seed = torch.Generator().manual_seed(10 * step + micro)
            x = torch.randn(1, 2, 6, 6, generator=seed)
            same.append(torch.allclose(pair(x), plain(x), atol=1e-6))
        for module in (pair, plain):
            move_weights(module, step)
    assert same == [True] * 4 + [False] * 6
    assert pair.norm.window is not None
    assert pair.norm.window.filled == 2


def test_a_checkpoint_of_plain_batch_normalization_starts_with_an_empty_window() -> None:
    plain = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))
    model, _ = convert_batchnorm(
        copy.deepcopy(plain), torch.randn(1, 2, 6, 6), kind="cbn", window_size=3
    )
    train(model, 2)
    layer = model.get_submodule("1")
    assert isinstance(layer, Layer)
    assert layer.window is not None
    assert layer.window.filled == 2
    model.load_state_dict(plain.state_dict())
    assert layer.window.filled == 0
