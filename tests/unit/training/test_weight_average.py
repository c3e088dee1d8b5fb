"""The moving average of the weights."""

import torch
from torch import nn

from norm import convert_batchnorm, plain_state_dict
from training.weight_average import WeightAverage, decay_at

FRAME = torch.zeros(1, 1, 8, 8, dtype=torch.float64)


def network() -> nn.Module:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3)).double()
    model, _ = convert_batchnorm(plain, FRAME, kind="cbn", window_size=3)
    return model


def train(model: nn.Module, steps: int, average: WeightAverage) -> list[dict[str, torch.Tensor]]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    history = []
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        model(torch.randn_like(FRAME)).square().mean().backward()
        optimizer.step()
        average.update(model, step)
        history.append({name: t.clone() for name, t in plain_state_dict(model).items()})
    return history


def test_weights_and_running_statistics_are_averaged_and_counters_copied() -> None:
    model = network()
    start = {name: tensor.clone() for name, tensor in plain_state_dict(model).items()}
    average = WeightAverage(model, 0.4)
    history = train(model, 6, average)
    # The first decays are 2/11, 3/12, 4/13 and 5/14; from 0.4 on they are held.
    decays = [2 / 11, 3 / 12, 4 / 13, 5 / 14, 0.4, 0.4]
    for name, value in average.state_dict().items():
        if not value.is_floating_point():
            assert value == 6, name
            continue
        expected = start[name]
        for decay, weights in zip(decays, history, strict=True):
            expected = decay * expected + (1 - decay) * weights[name]
        torch.testing.assert_close(value, expected)
    assert not any("window" in name for name in average.state_dict())


def test_a_network_that_showed_the_average_goes_on_as_if_it_had_not() -> None:
    model = network()
    average = WeightAverage(model, 0.9)
    train(model, 5, average)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with average.applied_to(model):
        shown = plain_state_dict(model)
        for name, value in average.state_dict().items():
            assert torch.equal(shown[name], value), name
        assert not torch.equal(shown["0.weight"], before["0.weight"])
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_an_average_put_back_goes_on_bit_for_bit() -> None:
    model = network()
    average = WeightAverage(model, 0.9)
    train(model, 3, average)
    other = WeightAverage(network(), 0.9)
    other.load_state_dict(average.state_dict())
    for each in (average, other):
        each.update(model, 4)
    for name, value in average.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_the_average_of_a_short_run_leaves_its_start_behind() -> None:
    left = 1.0
    for step in range(1, 101):
        left *= decay_at(step, 0.998)
    assert left < 1e-8
    assert decay_at(10_000, 0.998) == 0.998
