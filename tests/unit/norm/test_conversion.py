import copy
import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from norm import (
    CrossIterationBatchNorm2d,
    NormError,
    OptionError,
    TraceError,
    convert_batchnorm,
    restore_batchnorm,
)
from norm.conversion import Kind
from tests.unit.norm.conftest import CallCounter

KINDS: list[Kind] = ["bn", "cbn", "brn", "gn", "frozen"]
EXAMPLE = torch.zeros(1, 2, 8, 8)


class FusedNorm(nn.BatchNorm2d):
    """Normalization, dropout and activation in one, as timm's BatchNormAct2d."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop = nn.Identity()
        self.act = nn.PReLU()

    def forward(self, y: Tensor) -> Tensor:
        output: Tensor = self.act(self.drop(super().forward(y)))
        return output


class Network(nn.Module):
    """A little of everything that converts."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
        # Names that do not tell which belongs to which.
        self.b = nn.BatchNorm2d(8)
        self.a = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.fused_conv = nn.Conv2d(8, 12, 1)
        self.fused = FusedNorm(12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        output: Tensor = self.fused(self.fused_conv(self.b(self.a(x)).relu()))
        return output


def network() -> Network:
    torch.manual_seed(0)
    model = Network()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.state_dict()["running_mean"])
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_every_layer_is_named_with_its_convolution(kind: Kind) -> None:
    _, report = convert_batchnorm(network(), EXAMPLE, kind=kind)
    found = {entry.name: entry.convolution for entry in report.converted}
    assert found == {"stem.1": "stem.0", "b": "a", "fused": "fused_conv"}
    assert {entry.kind for entry in report.converted} == {kind}
    assert report.left == ()
    assert json.loads(json.dumps(report.as_dict()))["left"] == []


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_and_their_names_are_shared(kind: Kind) -> None:
    model = network()
    before = dict(model.named_parameters())
    convert_batchnorm(model, EXAMPLE, kind=kind, **({"window_size": 3} if kind == "cbn" else {}))
    after = dict(model.named_parameters())
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)


@pytest.mark.parametrize("kind", KINDS)
def test_a_trained_layer_computes_the_same_after_it_is_restored(kind: Kind) -> None:
    model, _ = convert_batchnorm(network(), EXAMPLE, kind=kind)
    for _ in range(3):
        model(torch.randn(2, 2, 8, 8)).sum().backward()
    x = torch.randn(1, 2, 8, 8)
    expected = model.eval()(x)
    assert torch.equal(restore_batchnorm(model)(x), expected)


@pytest.mark.parametrize("kind", ["cbn", "brn", "frozen"])
def test_restoring_gives_back_the_names_the_classes_and_the_mode(kind: Kind) -> None:
    original = network().train()
    names, kinds = list(original.state_dict()), [type(module) for module in original.modules()]
    model, _ = convert_batchnorm(original, EXAMPLE, kind=kind)
    twin = copy.deepcopy(model)
    for converted in (model, twin):
        restored = restore_batchnorm(converted)
        assert list(restored.state_dict()) == names
        assert [type(module) for module in restored.modules()] == kinds
        assert all(module.training for module in restored.modules())
        assert not any(module._forward_hooks for module in restored.modules())


def test_a_model_cast_after_conversion_restores_with_its_new_type() -> None:
    model, _ = convert_batchnorm(network(), EXAMPLE, kind="cbn")
    restored = restore_batchnorm(model.double())
    assert {value.dtype for value in restored.state_dict().values()} == {torch.float64, torch.int64}


def test_a_fused_activation_is_kept() -> None:
    x = torch.randn(2, 2, 8, 8)
    expected = network()(x)
    model, _ = convert_batchnorm(network(), EXAMPLE, kind="cbn")
    assert (expected < 0).any()
    torch.testing.assert_close(model(x), expected)


def test_one_kind_converts_to_another() -> None:
    model, _ = convert_batchnorm(network(), EXAMPLE, kind="cbn")
    model, report = convert_batchnorm(model, EXAMPLE, kind="brn")
    assert len(report.converted) == 3
    assert not any(isinstance(module, CrossIterationBatchNorm2d) for module in model.modules())


def test_conversion_leaves_mode_statistics_and_random_state_as_they_were() -> None:
    model = network()
    model.b.eval()
    modes = [module.training for module in model.modules()]
    state = copy.deepcopy(model.state_dict())
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    model_with_dropout = nn.Sequential(nn.Dropout(), model)
    convert_batchnorm(model_with_dropout, EXAMPLE, kind="bn")
    assert torch.equal(torch.rand(3), expected)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_buffers_of_other_layers_are_put_back() -> None:
    observer = CallCounter()
    model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4), observer)
    convert_batchnorm(model, torch.randn(1, 2, 4, 4), kind="cbn")
    assert observer.calls == 0


def test_a_model_that_cannot_run_is_left_as_it_was() -> None:
    model = network()
    with pytest.raises(TraceError, match="Network could not be run"):
        convert_batchnorm(model, torch.zeros(1, 5, 8, 8), kind="cbn")
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())
    assert type(model.b) is nn.BatchNorm2d


class Awkward(nn.Module):
    """Everything whose convolution cannot be told, or whose convolution is none."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Conv2d(2, 4, 1)
        self.norm_of_twice = nn.BatchNorm2d(4)
        self.fork = nn.Conv2d(2, 4, 1)
        self.left = nn.BatchNorm2d(4)
        self.right = nn.BatchNorm2d(4)
        self.up = nn.ConvTranspose2d(2, 4, 1)
        self.norm_of_up = nn.BatchNorm2d(4)
        self.shared = nn.BatchNorm2d(4)
        self.plain = nn.Conv2d(2, 4, 1)
        self.norm_of_sum = nn.BatchNorm2d(4)
        self.dropped = nn.Sequential(nn.Conv2d(2, 4, 1), nn.Dropout(), nn.BatchNorm2d(4))
        self.changed = nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU(inplace=True), nn.BatchNorm2d(4))
        self.computed = nn.Sequential(
            nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 4, 1)), nn.BatchNorm2d(4)
        )
        self.overwritten = nn.Conv2d(2, 4, 1)
        self.norm_of_overwritten = nn.BatchNorm2d(4)
        self.unused = nn.BatchNorm2d(4)
        self.flat = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        forked = self.fork(x)
        total = self.norm_of_twice(self.twice(x) + self.twice(x + 1))
        total = total + self.norm_of_twice(self.twice(x))
        total = total + self.left(forked) + self.right(forked) + self.norm_of_up(self.up(x))
        total = total + self.shared(self.plain(x)) + self.norm_of_sum(self.plain(x) + 1)
        total = total + self.dropped(x) + self.changed(x) + self.computed(x)
        total = total + self.norm_of_overwritten(self.overwritten(x).relu_())
        output: Tensor = total + self.flat(total.mean((2, 3)))[..., None, None]
        return output


REASONS = {
    "norm_of_twice": "runs 2 times a forward pass",
    "left": "'fork' feeds left and right",
    "right": "'fork' feeds left and right",
    "norm_of_up": "output of ConvTranspose2d 'up'",
    "shared": "'plain' runs 2 times",
    "norm_of_sum": "not the output of a convolution",
    "dropped.2": "output of Dropout 'dropped.1'",
    "changed.2": "output of ReLU 'changed.1'",
    "computed.1": "is computed, not a parameter",
    "norm_of_overwritten": "not the output of a convolution",
    "unused": "did not run",
    "flat": "BatchNorm1d is no BatchNorm2d",
}


def test_a_layer_without_a_convolution_of_its_own_is_left_with_the_reason() -> None:
    model = Awkward()
    _, report = convert_batchnorm(model, torch.randn(2, 2, 4, 4), kind="cbn")
    assert report.converted == ()
    assert {entry.name for entry in report.left} == set(REASONS)
    for entry in report.left:
        assert REASONS[entry.name] in entry.reason
    assert type(model.left) is nn.BatchNorm2d


def test_the_layers_options_are_passed_on() -> None:
    options = {
        "window_size": 5,
        "burn_in_steps": 2,
        "rho": 0.5,
        "d_max": 2.0,
        "r_max": 3.0,
        "history": "exponential",
        "slope_positions": 100,
        "ranks": "pooled",
        "momentum": 0.3,
    }
    model, report = convert_batchnorm(network(), EXAMPLE, kind="cbn", **options)
    assert len(report.converted) == 3
    for module in model.modules():
        if isinstance(module, CrossIterationBatchNorm2d):
            assert {name: getattr(module, name) for name in options} == options


def test_kinds_that_need_no_convolution_convert_them_all_the_same() -> None:
    model = Awkward()
    _, report = convert_batchnorm(model, torch.randn(2, 2, 4, 4), kind="gn")
    assert [entry.name for entry in report.left] == ["flat"]
    assert all(entry.convolution is None for entry in report.converted)


def test_a_layer_with_a_forward_pass_of_its_own_is_left() -> None:
    class Custom(nn.BatchNorm2d):
        def forward(self, y: Tensor) -> Tensor:
            return 2 * super().forward(y)

    model = nn.Sequential(nn.Conv2d(2, 4, 1), Custom(4))
    _, report = convert_batchnorm(model, EXAMPLE, kind="brn")
    assert report.left[0].reason == "Custom has a forward pass of its own"


def test_a_layer_registered_twice_is_replaced_under_both_names() -> None:
    norm = nn.BatchNorm2d(2)
    model, report = convert_batchnorm(nn.Sequential(norm, norm), EXAMPLE, kind="frozen")
    assert [entry.name for entry in report.converted] == ["0"]
    assert model.get_submodule("0") is model.get_submodule("1")
    assert model.get_submodule("1") is not norm


@pytest.mark.parametrize(
    ("channels", "groups", "reason"),
    [
        (64, 32, ""),
        (48, 24, "24 groups for 48 channels"),
        (32, 16, "16 groups for 32 channels"),
        (7, 1, "1 groups for 7 channels"),
    ],
)
def test_group_numbers_that_do_not_divide_are_reported(
    channels: int, groups: int, reason: str
) -> None:
    model = nn.Sequential(nn.Conv2d(2, channels, 1), nn.BatchNorm2d(channels))
    model_, report = convert_batchnorm(model, EXAMPLE, kind="gn")
    layer = model_.get_submodule("1")
    assert isinstance(layer, nn.GroupNorm)
    assert layer.num_groups == groups
    assert report.converted[0].reason == reason


def test_frozen_statistics_and_parameters_do_not_move() -> None:
    model, _ = convert_batchnorm(network(), EXAMPLE, kind="frozen")
    before = copy.deepcopy(model.state_dict())
    model(torch.randn(2, 2, 8, 8)).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.get_parameter("b.weight").grad is None
    assert model.get_parameter("a.weight").grad is not None


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("ghost", {}, "ghost"),
        ("cbn", {"window": 3}, "window"),
        ("cbn", {"window_size": 0}, "0"),
        ("brn", {"eps": 0.1}, "eps"),
        ("gn", {"groups": 3}, "groups"),
        ("gn", {"num_groups": 0}, "0"),
        ("frozen", {"momentum": 0.1}, "momentum"),
    ],
)
def test_a_bad_option_is_named_before_the_model_is_touched(
    kind: Any, options: dict[str, Any], message: str
) -> None:
    model = network()
    with pytest.raises(OptionError, match=message) as raised:
        convert_batchnorm(model, EXAMPLE, kind=kind, **options)
    assert isinstance(raised.value, NormError)
    assert type(model.b) is nn.BatchNorm2d


# smp's own notice about the name of the encoder says nothing about this room.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("encoder", ["resnet18", "timm-mobilenetv3_large_100", "efficientnet-b0"])
@pytest.mark.parametrize("architecture", ["Unet", "FPN"])
def test_segmentation_models_convert_completely_and_train(architecture: str, encoder: str) -> None:
    import segmentation_models_pytorch as smp

    model = smp.create_model(architecture, encoder, encoder_weights=None, in_channels=1)
    names = list(model.state_dict())
    x = torch.randn(1, 1, 64, 64)
    model, report = convert_batchnorm(model, x, kind="cbn", window_size=3)
    # smp keeps efficientnet's classification head, whose normalization never runs.
    idle = ["encoder._bn1"] if encoder == "efficientnet-b0" else []
    assert [entry.name for entry in report.left if entry.kind == "bn"] == idle
    # The decoder of its FPN normalizes by groups.
    others = {entry.reason.split()[0] for entry in report.left if entry.kind != "bn"}
    assert others == ({"GroupNorm"} if architecture == "FPN" else set())
    layers = [m for m in model.modules() if isinstance(m, CrossIterationBatchNorm2d)]
    assert len(layers) == len(report.converted) >= 20
    for _ in range(2):
        model(x).square().mean().backward()
    assert all(layer.window is not None and layer.window.filled == 2 for layer in layers)
    assert list(restore_batchnorm(model).state_dict()) == names
