"""Convolutions that several normalizations read, or whose weight several of them see."""

import pytest
import torch
from torch import Tensor, nn

from norm import CrossIterationBatchNorm2d, convert_batchnorm
from norm.window import RingWindow


def frames() -> Tensor:
    return torch.randn(2, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class Heads(nn.Module):
    """Convolutions that are shared, tied or no plain Conv2d, each with its normalizations."""

    def __init__(self) -> None:
        super().__init__()
        torchvision_ops = pytest.importorskip("torchvision.ops")
        # One head for two levels of a pyramid, with statistics for each level.
        self.head = nn.Conv2d(2, 4, 1)
        self.large = nn.BatchNorm2d(4)
        self.small = nn.BatchNorm2d(4)
        self.deformable = torchvision_ops.DeformConv2d(2, 4, 1)
        self.norm_of_deformable = nn.BatchNorm2d(4)
        # Two convolutions with one weight: each has inputs and a normalization of its own.
        self.original = nn.Sequential(nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4))
        self.twin = nn.Sequential(nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4))
        self.twin[0].weight = self.original[0].weight

    def forward(self, x: Tensor) -> Tensor:
        total = self.large(self.head(x)) + self.small(self.head(-x))
        offsets = x.new_zeros(x.shape[0], 2, *x.shape[2:])
        total = total + self.norm_of_deformable(self.deformable(x, offsets))
        output: Tensor = total + self.original(x) + self.twin(2 * x)
        return output


def test_normalizations_of_shared_and_deformable_convolutions_are_left_with_the_reason() -> None:
    model, report = convert_batchnorm(Heads().double(), frames(), kind="cbn")
    reasons = {entry.name: entry.reason for entry in report.left}
    assert list(reasons) == ["large", "small", "norm_of_deformable"]
    assert "its convolution 'head' runs 2 times" in reasons["large"]
    assert "its convolution 'head' runs 2 times" in reasons["small"]
    assert "output of DeformConv2d 'deformable', not of a Conv2d" in reasons["norm_of_deformable"]
    model(frames()).sum().backward()


def test_convolutions_with_a_tied_weight_keep_a_window_each() -> None:
    model, report = convert_batchnorm(
        Heads().double(), torch.randn(1, 2, 4, 4).double(), kind="cbn"
    )
    assert [entry.name for entry in report.converted] == ["original.1", "twin.1"]
    x = frames()
    model(x)
    weight = model.get_parameter("original.0.weight")
    with torch.no_grad():
        weight.add_(torch.randn_like(weight))
    for name, factor in (("original", 1), ("twin", 2)):
        layer = model.get_submodule(f"{name}.1")
        convolution = model.get_submodule(f"{name}.0")
        assert isinstance(layer, CrossIterationBatchNorm2d)
        assert isinstance(convolution, nn.Conv2d)
        assert isinstance(layer.window, RingWindow)
        past = layer.window.estimates(convolution.weight, convolution.bias)
        # The mean is linear in the weight, so its step is exact.
        torch.testing.assert_close(past.means[0], convolution(factor * x).mean((0, 2, 3)))
