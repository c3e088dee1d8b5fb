"""What `recalibrate` leaves as it was, also when it fails, and what it refuses."""

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from norm import NormError, OptionError, RecalibrationError, recalibrate
from tests.unit.norm.conftest import CallCounter


def frames(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(count, 2, 6, 6, dtype=torch.float64, generator=generator)


def split(frames: Tensor, size: int) -> list[Tensor]:
    return list(torch.split(frames, size))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = [CallCounter(), nn.Dropout()]
    for _ in range(3):
        layers += [nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.ReLU()]
    return nn.Sequential(*layers).double()


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Return all that must not change, running statistics included."""
    return {
        "state": copy.deepcopy(model.state_dict()),
        "gradients": {n: copy.deepcopy(p.grad) for n, p in model.named_parameters()},
        "modes": {name: module.training for name, module in model.named_modules()},
        "hooks": {
            name: (len(module._forward_pre_hooks), len(module._forward_hooks))
            for name, module in model.named_modules()
        },
        "random": torch.get_rng_state(),
        "grad_mode": torch.is_grad_enabled(),
    }


def assert_same(model: nn.Module, before: dict[str, Any], *, but: str | None = None) -> None:
    after = snapshot(model)
    for part in ("modes", "hooks", "grad_mode"):
        assert after[part] == before[part]
    torch.testing.assert_close(after["random"], before["random"], rtol=0, atol=0)
    for part in ("state", "gradients"):
        for name, value in before[part].items():
            if but is None or but not in name:
                torch.testing.assert_close(after[part][name], value, rtol=0, atol=0)


def trained_network() -> nn.Sequential:
    """Return a model with gradients and with a layer in another mode than the rest."""
    model = network()
    model(frames(3)).sum().backward()
    model[3].eval()
    return model


def test_nothing_but_the_running_statistics_changes() -> None:
    model = trained_network()
    before = snapshot(model)
    # The loader draws from torch's random state.
    loader = DataLoader(TensorDataset(frames(5)), batch_size=2, shuffle=True)
    report = recalibrate(model, loader, forward=lambda model, batch: model(batch[0]))
    assert report.converged
    assert_same(model, before, but="running_")
    assert any("num_batches_tracked" in name for name in before["state"])
    changed = {
        name
        for name, value in model.state_dict().items()
        if "running_" in name and not torch.equal(value, before["state"][name])
    }
    assert len(changed) == 6


class NoisyLoader:
    """Frames with noise from torch's random state, as random augmentation gives them."""

    def __iter__(self) -> Iterator[Tensor]:
        for batch in split(frames(5), 2):
            yield batch + torch.randn_like(batch)


def test_augmentation_from_the_random_state_repeats_itself_in_every_pass() -> None:
    report = recalibrate(network(), NoisyLoader(), tolerance=0)
    assert (report.passes, report.converged) == (4, True)


def test_batches_without_frames_do_not_matter() -> None:
    model, expected = network(), network()
    recalibrate(model, [frames(4)[:0], frames(4), frames(4)[:0]])
    recalibrate(expected, [frames(4)])
    for name, value in model.state_dict().items():
        if "running_" in name:
            assert torch.equal(value, expected.state_dict()[name])


def test_a_forward_pass_that_ends_early_is_no_error_that_the_model_could_handle() -> None:
    handled = []

    class Careful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = network()

        def forward(self, x: Tensor) -> Any:
            try:
                return self.body(x)
            except Exception as error:
                handled.append(error)
                raise

    assert recalibrate(Careful(), [frames(4)]).converged
    assert handled == []


class Stopped(Exception):  # noqa: N818 - it is no error of the product.
    pass


def stop_after(calls: int) -> Callable[..., Any]:
    """Return a `forward` that raises in the middle of the model after some calls."""
    left = iter(range(calls))

    def forward(model: nn.Module, batch: Tensor) -> None:
        handle = model.get_submodule("6").register_forward_hook(stop)
        try:
            model(batch)
        finally:
            handle.remove()

    def stop(*_: Any) -> None:
        if next(left, None) is None:
            raise Stopped

    return forward


def interrupt(done: int, expected: int) -> None:
    if done == 3:
        raise KeyboardInterrupt


def infinite_at_the_end() -> list[Tensor]:
    return [*split(frames(4), 1), torch.full((1, 2, 6, 6), math.inf, dtype=torch.float64)]


FAILURES: dict[str, tuple[Callable[[], Any], dict[str, Any], type[BaseException]]] = {
    "the model raises in the first pass": (
        lambda: split(frames(4), 1),
        {"forward": stop_after(2)},
        Stopped,
    ),
    "the model raises in a later pass": (
        lambda: split(frames(4), 1),
        {"forward": stop_after(6)},
        Stopped,
    ),
    "the callback raises": (
        lambda: split(frames(4), 1),
        {"progress": interrupt},
        KeyboardInterrupt,
    ),
    "a frame is infinite": (infinite_at_the_end, {}, RecalibrationError),
    "a generator is exhausted": (lambda: iter(split(frames(4), 1)), {}, OptionError),
}


@pytest.mark.parametrize(("loader", "options", "error"), FAILURES.values(), ids=FAILURES)
def test_after_a_failure_everything_is_as_it_was(
    loader: Callable[[], Any], options: dict[str, Any], error: type[BaseException]
) -> None:
    model = trained_network()
    before = snapshot(model)
    with pytest.raises(error):
        recalibrate(model, loader(), **options)
    assert_same(model, before)


def test_the_layer_whose_input_is_not_finite_is_named() -> None:
    model = network()
    with torch.no_grad():
        model.get_parameter("5.bias").fill_(math.nan)
    with pytest.raises(RecalibrationError, match=r"^6: .* not finite") as raised:
        recalibrate(model, [frames(4)])
    assert isinstance(raised.value, NormError)


def test_statistics_too_large_for_the_buffers_are_refused() -> None:
    model = nn.Sequential(nn.BatchNorm2d(1).half())
    # Each value fits in float16 and their variance does not.
    x = torch.tensor([[-6e4, 6e4]], dtype=torch.float16).view(1, 1, 1, 2)
    with pytest.raises(RecalibrationError, match=r"0: .* not finite in torch\.float16"):
        recalibrate(model, [x])


def test_a_single_value_a_channel_is_refused() -> None:
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(2)).double()
    with pytest.raises(RecalibrationError, match="1: one value a channel"):
        recalibrate(model, [frames(1)])


class GrowingLoader:
    """One frame more in each pass."""

    def __init__(self) -> None:
        self.frames = 2

    def __iter__(self) -> Iterator[Tensor]:
        self.frames += 1
        return iter(split(frames(self.frames), 1))


@pytest.mark.parametrize(
    ("loader", "options", "message"),
    [
        ((batch for batch in split(frames(3), 1)), {}, "exhausted after one pass: give a list"),
        ([], {}, "empty"),
        (GrowingLoader(), {}, "3 in the first pass and 4 in a later one"),
        ([[frames(3)]], {}, "a batch is a list.*give `forward`"),
        ([frames(3)], {"max_sweeps": 0}, "max_sweeps must be at least 1, got 0"),
        ([frames(3)], {"tolerance": -1.0}, "tolerance must not be negative, got -1.0"),
        ([frames(3)], {"tolerance": math.nan}, "tolerance must not be negative, got nan"),
        ([frames(3)], {"forward": lambda model, x: model.train()(x)}, "must not change modes"),
    ],
)
def test_what_cannot_be_used_is_named_with_the_remedy(
    loader: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        recalibrate(network(), loader, **options)
