"""Freezing every batch normalization of a model, and thawing them again."""

import copy

import pytest
import torch
from torch import Tensor, nn

from norm import (
    CrossIterationBatchNorm2d,
    FrozenBatchNorm2d,
    convert_batchnorm,
    freeze_batchnorm,
    restore_batchnorm,
)
from norm.conversion import Kind


def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 1),
        nn.BatchNorm2d(4, eps=1e-3, momentum=0.3),
        nn.ReLU(),
        nn.Conv2d(4, 4, 1),
        nn.BatchNorm2d(4, affine=False),
    )
    for _ in range(3):
        model(frames())
    return model


def frames() -> Tensor:
    return torch.randn(2, 2, 6, 6, generator=torch.Generator().manual_seed(1)) + 1


def test_a_frozen_model_computes_the_same_in_both_modes_and_never_moves() -> None:
    model = network()
    expected = copy.deepcopy(model).eval()(frames())
    state = copy.deepcopy(model.state_dict())
    model, report = freeze_batchnorm(model)
    assert model.training
    output = model(frames())
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(model.eval()(frames()), expected)
    output.sum().backward()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert model.get_parameter("1.weight").grad is None
    assert [(entry.name, entry.kind) for entry in report.converted] == [
        ("1", "frozen"),
        ("4", "frozen"),
    ]
    assert report.left == ()


@pytest.mark.parametrize("kind", ["bn", "cbn", "brn", "frozen"])
def test_converted_layers_freeze_as_what_they_are_in_eval_mode(kind: Kind) -> None:
    model, _ = convert_batchnorm(network(), frames(), kind=kind)
    model(frames()).sum().backward()
    expected = model.eval()(frames())
    model, report = freeze_batchnorm(model)
    assert len(report.converted) == 2
    assert not any(isinstance(module, CrossIterationBatchNorm2d) for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())
    torch.testing.assert_close(model.train()(frames()), expected)


def test_restoring_a_frozen_model_gives_the_layers_back() -> None:
    original = network()
    layers, state = list(original.modules()), copy.deepcopy(original.state_dict())
    frozen, _ = freeze_batchnorm(original)
    assert any(isinstance(module, FrozenBatchNorm2d) for module in frozen.modules())
    restored = restore_batchnorm(frozen)
    assert all(a is b for a, b in zip(restored.modules(), layers, strict=True))
    assert list(restored.state_dict()) == list(state)
    assert all(torch.equal(value, state[name]) for name, value in restored.state_dict().items())


def test_a_model_that_is_one_layer_is_frozen_and_restored() -> None:
    layer = nn.BatchNorm2d(2)
    frozen, report = freeze_batchnorm(layer)
    assert isinstance(frozen, FrozenBatchNorm2d)
    assert [entry.name for entry in report.converted] == [""]
    assert restore_batchnorm(frozen) is layer


def test_layers_that_cannot_be_frozen_are_left_with_the_reason() -> None:
    model = nn.Sequential(
        nn.BatchNorm2d(2, track_running_stats=False), nn.BatchNorm1d(2), nn.GroupNorm(1, 2)
    )
    _, report = freeze_batchnorm(model)
    assert report.converted == ()
    assert [(entry.name, entry.kind) for entry in report.left] == [
        ("0", "bn"),
        ("1", "bn"),
        ("2", "gn"),
    ]
    assert report.left[0].reason == "it tracks no running statistics"
