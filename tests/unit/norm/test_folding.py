from typing import Any

import pytest
import torch
from torch import Tensor, nn

from norm import convert_batchnorm, fold_batchnorm

EXAMPLE = torch.randn(2, 2, 9, 9, generator=torch.Generator().manual_seed(0))


def settle(model: nn.Module) -> nn.Module:
    """Give every normalization statistics and parameters that are not the initial ones."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            state = module.state_dict()
            if module.track_running_stats:
                nn.init.uniform_(state["running_var"], 0.5, 2)
                nn.init.normal_(state["running_mean"])
            if module.affine:
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
    return model.eval()


CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "without bias": {"bias": False},
    "grouped": {"groups": 2},
    "strided and dilated": {"stride": 2, "dilation": 2},
    "reflect": {"padding": 1, "padding_mode": "reflect"},
}


@pytest.mark.parametrize("options", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
@pytest.mark.parametrize("affine", [True, False])
def test_a_folded_model_computes_the_same(options: dict[str, Any], affine: bool) -> None:
    model = settle(
        nn.Sequential(nn.Conv2d(2, 4, 3, **options), nn.BatchNorm2d(4, affine=affine))
    ).double()
    expected = model(EXAMPLE.double())
    folded, report = fold_batchnorm(model, EXAMPLE.double())
    # Folding rounds weight and bias once; values are around 1.
    torch.testing.assert_close(folded(EXAMPLE.double()), expected, rtol=0, atol=1e-13)
    assert report.largest_difference < 1e-13
    assert [(entry.name, entry.convolution) for entry in report.folded] == [("1", "0")]
    assert isinstance(folded.get_submodule("1"), nn.Identity)


def test_a_fused_activation_stays_behind() -> None:
    timm_layers = pytest.importorskip("timm.layers")
    model = settle(nn.Sequential(nn.Conv2d(2, 4, 3), timm_layers.BatchNormAct2d(4)))
    expected = model(EXAMPLE)
    folded, _ = fold_batchnorm(model, EXAMPLE)
    assert type(folded.get_submodule("1")) is nn.ReLU
    torch.testing.assert_close(folded(EXAMPLE), expected, rtol=1e-5, atol=1e-5)


def test_converted_layers_fold_as_what_they_are_in_eval_mode() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4))
    converted, _ = convert_batchnorm(model, EXAMPLE, kind="cbn", window_size=3)
    for _ in range(3):
        converted(EXAMPLE)
    expected = converted.eval()(EXAMPLE)
    folded, report = fold_batchnorm(converted, EXAMPLE)
    assert not report.left
    assert list(folded.state_dict()) == ["0.weight", "0.bias"]
    torch.testing.assert_close(folded(EXAMPLE), expected, rtol=1e-5, atol=1e-5)


class Tapped(nn.Module):
    """The convolution's output is read by more than its normalization."""

    def __init__(self, tap: str) -> None:
        super().__init__()
        self.tap = tap
        self.convolution = nn.Conv2d(2, 4, 3)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Any:
        y = self.convolution(x)
        normalized = self.norm(y)
        if self.tap == "add":
            return y + normalized
        if self.tap == "cat":
            return torch.cat([y, normalized])
        return {"raw": y, "normalized": normalized}


@pytest.mark.parametrize(
    ("tap", "reader"), [("add", "add"), ("cat", "cat"), ("returned", "the model's caller")]
)
def test_a_convolution_that_something_else_reads_is_not_folded(tap: str, reader: str) -> None:
    model = settle(Tapped(tap))
    folded, report = fold_batchnorm(model, EXAMPLE)
    assert not report.folded
    assert reader in report.left[0].reason
    assert report.largest_difference == 0
    assert isinstance(folded.get_submodule("norm"), nn.BatchNorm2d)


def test_what_cannot_be_folded_is_reported() -> None:
    model = nn.Sequential(
        nn.ConvTranspose2d(2, 4, 3),
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 4, 1),
        nn.BatchNorm2d(4, track_running_stats=False),
        nn.ReLU(),
        nn.BatchNorm2d(4),
    )
    _, report = fold_batchnorm(settle(model), EXAMPLE)
    assert [entry.name for entry in report.left] == ["1", "3", "5"]
    assert "ConvTranspose2d" in report.left[0].reason
    assert "running statistics" in report.left[1].reason
    assert "ReLU" in report.left[2].reason
