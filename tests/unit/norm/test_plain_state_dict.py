"""A checkpoint of a converted model loads into plain batch normalization, and back."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from norm import convert_batchnorm, plain_state_dict, restore_batchnorm
from norm.conversion import Kind

CONVERSIONS: dict[str, tuple[Kind, dict[str, Any]]] = {
    "cbn": ("cbn", {"window_size": 3, "burn_in_steps": 1}),
    "cbn, exponential": ("cbn", {"window_size": 3, "history": "exponential"}),
    "brn": ("brn", {"total_steps": 100}),
    "frozen": ("frozen", {}),
}


def network() -> nn.Sequential:
    shared = nn.BatchNorm2d(4)
    return nn.Sequential(
        nn.Conv2d(2, 4, 1),
        nn.BatchNorm2d(4),
        nn.PReLU(),
        nn.Conv2d(4, 4, 1),
        shared,
        # The same layer under a second name.
        nn.Sequential(shared),
    )


def frames() -> Tensor:
    return torch.randn(2, 2, 6, 6, generator=torch.Generator().manual_seed(1)) + 1


def trained(kind: Kind, options: dict[str, Any]) -> nn.Module:
    torch.manual_seed(0)
    model, _ = convert_batchnorm(network(), frames(), kind=kind, **options)
    for _ in range(3):
        model(frames()).square().sum().backward()
    return model


@pytest.mark.parametrize(("kind", "options"), CONVERSIONS.values(), ids=CONVERSIONS)
def test_it_loads_strictly_into_a_model_that_was_never_converted(
    kind: Kind, options: dict[str, Any]
) -> None:
    model = trained(kind, options)
    plain = network()
    plain.load_state_dict(plain_state_dict(model), strict=True)
    assert torch.equal(plain.eval()(frames()), model.eval()(frames()))


@pytest.mark.parametrize(("kind", "options"), CONVERSIONS.values(), ids=CONVERSIONS)
def test_it_loads_strictly_into_a_converted_model_whose_history_starts_empty(
    kind: Kind, options: dict[str, Any]
) -> None:
    model = trained(kind, options)
    other = trained(kind, options)
    state = plain_state_dict(model)
    other.load_state_dict(state, strict=True)
    assert torch.equal(other.eval()(frames()), model.eval()(frames()))
    for name, value in other.state_dict().items():
        if name not in state:
            assert not value.any(), name


@pytest.mark.parametrize(("kind", "options"), CONVERSIONS.values(), ids=CONVERSIONS)
def test_it_is_the_state_of_the_restored_model_and_leaves_the_converted_one_alone(
    kind: Kind, options: dict[str, Any]
) -> None:
    model = trained(kind, options)
    before = copy.deepcopy(model.state_dict())
    state = plain_state_dict(model)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in after.items())
    restored = restore_batchnorm(model).state_dict()
    assert list(state) == list(restored) == list(network().state_dict())
    assert all(value.data_ptr() == state[name].data_ptr() for name, value in restored.items())


def test_the_whole_state_of_a_converted_model_does_not_load_into_a_plain_one() -> None:
    with pytest.raises(RuntimeError, match=r"Unexpected key.*window"):
        network().load_state_dict(trained("cbn", {}).state_dict(), strict=True)
