"""The comparator is CBN where all is well, and fails where published code does."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from benchmarks.norm.transcription import PlainCrossIterationBatchNorm2d, transcribe
from norm import CrossIterationBatchNorm2d

# The paper's own equations: its pool is the whole window.
PAPER: dict[str, Any] = {
    "variance": "paper",
    "gradient": "paper",
    "d_max": math.inf,
    "r_max": math.inf,
}


def move_weights(generator: torch.Generator, *modules: nn.Module) -> None:
    """Move parameters by the same noise in every module."""
    state = generator.get_state()
    for module in modules:
        generator.set_state(state)
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.data.add_(0.05 * noise)


def plain_block(**options: Any) -> tuple[nn.Conv2d, PlainCrossIterationBatchNorm2d]:
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 4, 3, padding=1, bias=False)
    return convolution, PlainCrossIterationBatchNorm2d(convolution, **options)


def filled_block(**options: Any) -> tuple[nn.Conv2d, PlainCrossIterationBatchNorm2d]:
    convolution, plain = plain_block(**options)
    for _ in range(plain.past_size):
        plain(convolution(torch.randn(2, 3, 6, 6)))
    return convolution, plain


# The published default adds eps to the deviation, nn.BatchNorm2d adds it to the variance; an eps of
# zero makes the two one.
@pytest.mark.parametrize(("eps", "inside"), [(1e-5, True), (0.0, False)])
def test_it_agrees_with_the_papers_form_of_cbn(eps: float, inside: bool) -> None:
    torch.manual_seed(0)
    ours = nn.Conv2d(3, 4, 3, padding=1, bias=False).double()
    theirs = nn.Conv2d(3, 4, 3, padding=1, bias=False).double()
    theirs.load_state_dict(ours.state_dict())
    cbn = CrossIterationBatchNorm2d(4, eps, window_size=3, **PAPER).double().bind(ours)
    plain = PlainCrossIterationBatchNorm2d(theirs, eps, window_size=3, eps_inside_root=inside)
    generator = torch.Generator().manual_seed(1)
    # Six passes fill a window of three and drop its oldest entries.
    for _ in range(6):
        x = torch.randn(2, 3, 6, 7, generator=generator, dtype=torch.float64) + 0.3
        direction = torch.randn(2, 4, 6, 7, generator=generator, dtype=torch.float64)
        results = []
        for convolution, layer in ((ours, cbn), (theirs, plain)):
            leaf = x.clone().requires_grad_()
            output = layer(convolution(leaf))
            leaves = [leaf, convolution.weight, layer.weight, layer.bias]
            results.append([output, *torch.autograd.grad(output, leaves, direction)])
            results[-1] += [layer.running_mean, layer.running_var]
        for got, wanted in zip(*results, strict=True):
            # float64 on both sides; the margin is some hundred roundings of values near 1.
            torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-10)
        move_weights(generator, ours, theirs)
    assert len(plain.past_weights) == 2


def test_burn_in_counts_forward_passes_and_leaves_the_window_empty() -> None:
    convolution, plain = plain_block(burn_in_passes=2)
    x = torch.randn(2, 3, 6, 6)
    for remembered in (0, 0, 1, 2):
        plain(convolution(x))
        assert len(plain.past_means) == remembered


def test_it_keeps_three_weight_sized_tensors_an_iteration() -> None:
    convolution, plain = filled_block(window_size=5)
    weight_sized = [t for t in plain.history() if t.shape == convolution.weight.shape]
    assert len(weight_sized) == 3 * 4


def test_a_checkpoint_forgets_the_history() -> None:
    convolution, plain = filled_block(window_size=3)
    resumed = PlainCrossIterationBatchNorm2d(convolution, window_size=3)
    resumed.load_state_dict(plain.state_dict())
    y = convolution(torch.randn(2, 3, 6, 6) + 1)
    difference = (resumed(y) - plain(y)).abs().max()
    assert difference > 0.1, "the resumed layer should miss two of its three iterations"


def test_the_history_stays_behind_when_the_module_is_cast() -> None:
    _, plain = filled_block(window_size=3)
    plain.double()
    assert plain.running_mean.dtype == torch.float64
    assert {tensor.dtype for tensor in plain.history()} == {torch.float32}


def test_bfloat16_activations_lose_the_variance() -> None:
    """A mean of 40 deviations leaves E[y^2] - E[y]^2 no correct digit in eight bits."""
    torch.manual_seed(0)
    x = 40 + torch.randn(2, 1, 16, 16, dtype=torch.bfloat16)
    truth = nn.BatchNorm2d(1)(x.float())
    outputs = []
    for kind in ("transcription", "cbn"):
        convolution = nn.Conv2d(1, 1, 1, bias=False).to(torch.bfloat16)
        nn.init.ones_(convolution.weight)
        layer: nn.Module
        if kind == "cbn":
            layer = CrossIterationBatchNorm2d(1, window_size=2).bind(convolution)
        else:
            layer = PlainCrossIterationBatchNorm2d(convolution, window_size=2)
        outputs.append(layer(convolution(x)).float())
    plain, ours = outputs
    # bfloat16 rounds inputs near 40 to eighths, an eighth of a deviation.
    assert (ours - truth).abs().max() < 0.2
    assert not (plain - truth).abs().max() < 1


def test_a_blank_image_gives_gradients_that_are_not_numbers() -> None:
    for kind in ("transcription", "cbn"):
        torch.manual_seed(0)
        convolution = nn.Conv2d(1, 2, 1, bias=False)
        layer: nn.Module
        if kind == "cbn":
            layer = CrossIterationBatchNorm2d(2, window_size=3).bind(convolution)
        else:
            layer = PlainCrossIterationBatchNorm2d(convolution, window_size=3)
        layer(convolution(torch.zeros(1, 1, 4, 4))).sum().backward()
        assert convolution.weight.grad is not None
        assert bool(convolution.weight.grad.isfinite().all()) is (kind == "cbn")


# torch warns of a variance without degrees of freedom, which is the defect shown.
@pytest.mark.filterwarnings("ignore:var\\(\\)")
def test_a_single_value_a_channel_spoils_the_running_variance() -> None:
    convolution, plain = plain_block(window_size=3)
    plain(convolution(torch.randn(1, 3, 1, 1)))
    assert plain.running_var.isnan().all()


def test_a_frozen_convolution_raises_where_cbn_trains() -> None:
    convolution, plain = plain_block(window_size=3)
    convolution.requires_grad_(False)
    x = torch.randn(2, 3, 6, 6, requires_grad=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        plain(convolution(x))
    cbn = CrossIterationBatchNorm2d(4, window_size=3).bind(convolution)
    cbn(convolution(x)).sum().backward()
    assert x.grad is not None


def test_a_pass_without_gradients_is_plain_batch_normalization_unannounced() -> None:
    convolution, plain = filled_block(window_size=3, eps_inside_root=True)
    x = torch.randn(2, 3, 6, 6) + 1
    before = [tensor.clone() for tensor in plain.history()]
    with torch.no_grad():
        y = convolution(x)
        output = plain(y)
    values = y.transpose(0, 1).flatten(1)
    variance = values.var(1).view(1, -1, 1, 1) + plain.eps
    expected = (y - values.mean(1).view(1, -1, 1, 1)) / variance.sqrt()
    torch.testing.assert_close(output, expected)
    assert all(torch.equal(old, new) for old, new in zip(before, plain.history(), strict=True))


def test_activation_checkpointing_normalizes_by_the_batch_alone() -> None:
    """The reentrant kind runs the first pass without gradients, so the window is not used."""
    convolution, plain = filled_block(window_size=3)
    other, same = filled_block(window_size=3)
    x = (torch.randn(2, 3, 6, 6) + 1).requires_grad_()

    def block(inputs: Tensor) -> Tensor:
        output: Tensor = plain(convolution(inputs))
        return output

    output = checkpoint(block, x, use_reentrant=True)
    assert isinstance(output, Tensor)
    assert (output - same(other(x))).abs().max() > 0.1


def test_activation_checkpointing_remembers_the_pass_twice() -> None:
    convolution, plain = filled_block(window_size=3)
    oldest = plain.past_means[0]
    x = torch.randn(2, 3, 6, 6, requires_grad=True)
    output = checkpoint(lambda inputs: plain(convolution(inputs)), x, use_reentrant=False)
    assert isinstance(output, Tensor)
    torch.autograd.backward(output.sum())
    assert torch.equal(*plain.past_means)
    assert not any(tensor is oldest for tensor in plain.past_means)


def small_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 2, 1, bias=False),
        nn.BatchNorm2d(2),
    )


def test_transcribe_replaces_the_pairs_and_reports_the_rest() -> None:
    model, report = transcribe(small_model(), torch.randn(1, 3, 8, 8), window_size=3)
    assert isinstance(model, nn.Sequential)
    assert [(e.name, e.convolution, e.kind) for e in report.converted] == [
        ("1", "0", "transcription"),
        ("5", "4", "transcription"),
    ]
    assert [(e.name, e.reason) for e in report.left] == [
        ("3", "its input is the output of ReLU '2', not of a Conv2d")
    ]
    kinds = [type(module) for module in model if not isinstance(module, (nn.Conv2d, nn.ReLU))]
    plain = PlainCrossIterationBatchNorm2d
    assert kinds == [plain, nn.BatchNorm2d, plain]


def test_a_transcribed_model_trains_the_same_parameters_and_evaluates_alike() -> None:
    x, original = torch.randn(2, 3, 8, 8), small_model().eval()
    expected, parameters = original(x), dict(original.named_parameters())
    model, _ = transcribe(original, x, window_size=3, eps_inside_root=True)
    torch.testing.assert_close(model(x), expected)
    now = dict(model.named_parameters())
    assert now.keys() == parameters.keys()
    assert all(now[name] is parameters[name] for name in now)
    model.train()(x).square().sum().backward()
    assert all(parameter.grad is not None for parameter in now.values())


def test_a_layer_that_learns_nothing_is_refused_before_anything_is_replaced() -> None:
    model = small_model()
    model[5] = nn.BatchNorm2d(2, affine=False)
    with pytest.raises(ValueError, match="5: the transcription needs weight"):
        transcribe(model, torch.randn(1, 3, 8, 8))
    assert isinstance(model[1], nn.BatchNorm2d)
