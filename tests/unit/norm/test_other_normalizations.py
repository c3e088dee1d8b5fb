"""The report names every normalization layer of a model, whatever its class."""

import json
import re

import pytest
import torch
from torch import Tensor, nn

from norm import convert_batchnorm, freeze_batchnorm
from norm.conversion import Kind

timm_layers = pytest.importorskip("timm.layers")
torchvision_ops = pytest.importorskip("torchvision.ops")


class RootMeanSquareNorm(nn.Module):
    """A normalization that no library knows."""

    def forward(self, y: Tensor) -> Tensor:
        return y / y.square().mean(1, keepdim=True).add(1e-5).sqrt()


class Normalize(nn.Module):
    """A step of the preprocessing, as in torchvision's transforms."""

    def forward(self, x: Tensor) -> Tensor:
        return x - 0.5


class ConvNormBlock(nn.Sequential):
    """A block is no layer, though its name says Norm."""


def zoo() -> nn.Sequential:
    return nn.Sequential(
        Normalize(),
        ConvNormBlock(nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4)),
        torchvision_ops.FrozenBatchNorm2d(4),
        timm_layers.FrozenBatchNormAct2d(4),
        nn.GroupNorm(2, 4),
        timm_layers.GroupNormAct(4, 2),
        timm_layers.LayerNorm2d(4),
        timm_layers.LayerNormAct2d(4),
        nn.RMSNorm((4, 8, 8)),
        nn.InstanceNorm2d(4),
        nn.LocalResponseNorm(2),
        RootMeanSquareNorm(),
        nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1)),
    )


LEFT = {
    "2": ("frozen", "FrozenBatchNorm2d are frozen already: .*norm_layer=nn.BatchNorm2d"),
    "3": ("frozen", "FrozenBatchNormAct2d are frozen already: .*unfreeze_batch_norm_2d"),
    "4": ("gn", "GroupNorm normalizes each image by itself"),
    "5": ("gn", "GroupNormAct normalizes each image by itself"),
    "6": ("ln", "LayerNorm2d normalizes each image by itself"),
    "7": ("ln", "LayerNormAct2d normalizes each image by itself"),
    "8": ("rms", "RMSNorm normalizes each image by itself"),
    "9": ("in", "InstanceNorm2d normalizes each image by itself"),
    "10": ("lrn", "LocalResponseNorm divides each value by its neighbours"),
    "11": ("RootMeanSquareNorm", "known by its name only"),
}


@pytest.mark.parametrize("kind", ["bn", "cbn", "brn", "gn", "frozen"])
def test_every_normalization_is_in_the_report_with_what_it_is_and_why_it_was_left(
    kind: Kind,
) -> None:
    model, report = convert_batchnorm(zoo(), torch.randn(2, 2, 8, 8), kind=kind)
    assert [(entry.name, entry.kind) for entry in report.converted] == [("1.1", kind)]
    left = {entry.name: entry for entry in report.left}
    assert {name: entry.kind for name, entry in left.items()} == {
        name: kind for name, (kind, _) in LEFT.items()
    }
    for name, (_, reason) in LEFT.items():
        assert re.search(reason, left[name].reason)
        assert left[name].convolution is None
    assert json.loads(json.dumps(report.as_dict()))["left"][0]["kind"] == "frozen"
    model(torch.randn(2, 2, 8, 8))


def test_a_frozen_backbone_is_reported_and_keeps_its_statistics() -> None:
    torchvision_models = pytest.importorskip("torchvision.models")
    model = torchvision_models.resnet18(norm_layer=torchvision_ops.FrozenBatchNorm2d)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model, report = convert_batchnorm(model, torch.zeros(1, 3, 32, 32), kind="cbn")
    assert report.converted == ()
    assert len(report.left) == 20
    assert {entry.kind for entry in report.left} == {"frozen"}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_layer_converted_to_group_normalization_is_reported_when_it_cannot_go_back() -> None:
    model: nn.Module = nn.Sequential(nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4))
    model, _ = convert_batchnorm(model, torch.zeros(1, 2, 4, 4), kind="gn")
    for _, report in (
        convert_batchnorm(model, torch.zeros(1, 2, 4, 4), kind="cbn"),
        freeze_batchnorm(model),
    ):
        assert [(entry.name, entry.kind) for entry in report.left] == [("1", "gn")]
        assert "was converted to group normalization" in report.left[0].reason


@pytest.mark.parametrize(
    ("layer", "shape", "reason"),
    [
        (nn.SyncBatchNorm(2), (2, 2, 4, 4), "before nn.SyncBatchNorm.convert_sync_batchnorm"),
        (timm_layers.SyncBatchNormAct(2), (2, 2, 4, 4), "SyncBatchNormAct is no BatchNorm2d"),
        (nn.BatchNorm1d(2), (2, 2, 4), "BatchNorm1d is no BatchNorm2d"),
        (nn.BatchNorm3d(2), (2, 2, 4, 4, 4), "BatchNorm3d is no BatchNorm2d"),
    ],
)
def test_other_batch_normalizations_are_left_with_the_remedy(
    layer: nn.Module, shape: tuple[int, ...], reason: str
) -> None:
    _, report = convert_batchnorm(nn.Sequential(layer), torch.zeros(shape), kind="brn")
    assert [(entry.name, entry.kind) for entry in report.left] == [("0", "bn")]
    assert reason in report.left[0].reason


def test_the_remedy_for_synchronized_layers_works() -> None:
    synchronized = nn.SyncBatchNorm(2)
    nn.init.normal_(synchronized.weight)
    plain = nn.BatchNorm2d(2)
    plain.load_state_dict(synchronized.state_dict())
    x = torch.randn(2, 2, 4, 4)
    assert torch.equal(plain.eval()(x), synchronized.eval()(x))
    _, report = convert_batchnorm(nn.Sequential(plain), x, kind="brn")
    assert report.left == ()
