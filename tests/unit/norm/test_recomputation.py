"""Activation checkpointing runs a forward pass twice; statistics must move once."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from norm import CrossIterationBatchNorm2d, HandoverError, convert_batchnorm
from norm.conversion import Kind


def block() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 3, 3, stride=2, bias=False),
        nn.BatchNorm2d(3),
    )


def converted(kind: Kind, **options: object) -> nn.Module:
    model, report = convert_batchnorm(block(), torch.zeros(1, 2, 8, 8), kind=kind, **options)
    assert not report.left
    return model


def frames(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(1, 2, 8, 8, generator=generator, requires_grad=True) for _ in range(count)]


def step(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.sub_(0.01 * parameter.grad)
            parameter.grad = None


VARIANTS: list[tuple[Kind, dict[str, object]]] = [
    ("cbn", {"window_size": 3, "burn_in_steps": 1}),
    ("cbn", {"window_size": 3, "gradient": "paper", "variance": "paper"}),
    ("cbn", {"window_size": 4, "history": "exponential"}),
    ("brn", {"total_steps": 8}),
]


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize(("kind", "options"), VARIANTS)
def test_a_checkpointed_run_is_the_plain_run(
    reentrant: bool, kind: Kind, options: dict[str, object]
) -> None:
    plain = converted(kind, **options)
    twin = copy.deepcopy(plain)
    for x, same in zip(frames(5), frames(5), strict=True):
        expected = plain(x)
        output = checkpoint(twin, same, use_reentrant=reentrant)
        assert torch.equal(output, expected)
        expected.pow(3).sum().backward()
        output.pow(3).sum().backward()
        assert x.grad is not None
        assert same.grad is not None
        # The recomputed forward pass runs the same kernels on the same numbers.
        assert torch.equal(same.grad, x.grad)
        step(plain)
        step(twin)
    for name, value in plain.state_dict().items():
        assert torch.equal(twin.state_dict()[name], value), name


@pytest.mark.parametrize("reentrant", [True, False])
def test_micro_batches_may_wait_for_one_backward_pass(reentrant: bool) -> None:
    plain = converted("cbn", window_size=3)
    twin = copy.deepcopy(plain)
    losses, twin_losses = [], []
    for x, same in zip(frames(4), frames(4), strict=True):
        losses.append(plain(x).pow(3).sum())
        twin_losses.append(checkpoint(twin, same, use_reentrant=reentrant).pow(3).sum())
    torch.autograd.backward(losses)
    torch.autograd.backward(twin_losses)
    for ours, theirs in zip(twin.parameters(), plain.parameters(), strict=True):
        # The micro-batches' gradients may be added in another order.
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-5)
    for name, value in plain.state_dict().items():
        assert torch.equal(twin.state_dict()[name], value), name


def test_the_normalization_alone_may_be_checkpointed_without_its_convolution() -> None:
    plain = converted("cbn", window_size=3)
    twin = copy.deepcopy(plain)
    for x in frames(3):
        expected = plain(x)
        convolution, *rest = twin.children()
        output = checkpoint(nn.Sequential(*rest), convolution(x), use_reentrant=False)
        assert torch.equal(output, expected)
        expected.pow(3).sum().backward()
        output.pow(3).sum().backward()
        step(plain)
        step(twin)
    for name, value in plain.state_dict().items():
        assert torch.equal(twin.state_dict()[name], value), name


def test_no_input_is_held_after_a_recomputation() -> None:
    model = converted("cbn", window_size=3)
    (x,) = frames(1)
    checkpoint(model, x, use_reentrant=False).sum().backward()
    layers = [layer for layer in model.children() if isinstance(layer, CrossIterationBatchNorm2d)]
    bindings = [layer._binding for layer in layers]
    assert len(bindings) == 2
    assert all(binding is not None and binding._handed_over is None for binding in bindings)


def test_a_batch_that_no_forward_pass_had_is_refused_inside_a_backward_pass() -> None:
    model = converted("cbn", window_size=3)
    first, second = frames(2)

    def another_batch(_: Tensor) -> None:
        model(second)

    output = model(first)
    output.register_hook(another_batch)
    with pytest.raises(HandoverError, match="no recent forward pass"):
        output.sum().backward()
