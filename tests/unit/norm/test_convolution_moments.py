from typing import Any, Literal, get_args

import pytest
import torch
from torch import Tensor, nn

from norm.convolution_moments import (
    convolution_geometry,
    every_nth_output,
    grid_patches,
    mean_patch,
    mean_response,
    observed_padding_rule,
    variance_slope,
)

Mode = Literal["zeros", "reflect", "replicate", "circular"]
MODES: tuple[Mode, ...] = get_args(Mode)


def any_convolution(mode: Mode) -> tuple[nn.Conv2d, Tensor]:
    torch.manual_seed(3)
    convolution = nn.Conv2d(
        4, 6, (3, 5), (2, 1), 2, (1, 2), groups=2, bias=False, padding_mode=mode
    )
    return convolution.double(), torch.randn(2, 4, 9, 11, dtype=torch.float64)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_mean_patch_gives_the_exact_mean_for_any_weight(
    mode: Mode, memory_format: torch.memory_format
) -> None:
    convolution, x = any_convolution(mode)
    x = x.to(memory_format=memory_format)
    geometry = convolution_geometry(convolution, x, convolution(x).shape[2:], "declared")
    patch = mean_patch(x, geometry, x.dtype)
    for _ in range(2):
        torch.nn.init.normal_(convolution.weight)
        response = mean_response(patch.flatten(1)[None], convolution.weight)[0]
        torch.testing.assert_close(response, convolution(x).mean((0, 2, 3)), rtol=0, atol=1e-12)


def derivative_of_the_variance(y: Tensor, weight: Tensor) -> Tensor:
    (slope,) = torch.autograd.grad(y.var((0, 2, 3), correction=0).sum(), weight)
    return slope


def slope_of(convolution: nn.Conv2d, x: Tensor, y: Tensor) -> Tensor:
    geometry = convolution_geometry(convolution, x, (y.shape[2], y.shape[3]), "declared")
    y = y.detach()
    return variance_slope(x, y, y.mean((0, 2, 3)), convolution.weight.shape, geometry)


@pytest.mark.parametrize("mode", MODES)
def test_variance_slope_is_the_derivative_of_the_variance(mode: Mode) -> None:
    convolution, x = any_convolution(mode)
    y = convolution(x)
    expected = derivative_of_the_variance(y, convolution.weight)
    torch.testing.assert_close(slope_of(convolution, x, y), expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"kernel_size": 3, "padding": 1}, id="few positions"),
        pytest.param({"kernel_size": (3, 2), "stride": (2, 3), "padding": 1}, id="strided"),
        pytest.param({"kernel_size": 3, "dilation": 2, "padding": (2, 1)}, id="dilated"),
        pytest.param({"kernel_size": 2, "padding_mode": "circular", "padding": 1}, id="circular"),
        pytest.param({"kernel_size": 3, "padding": "same"}, id="same"),
        pytest.param({"kernel_size": 1}, id="1x1"),
        pytest.param({"kernel_size": 1, "stride": 3}, id="1x1 strided"),
    ],
)
def test_variance_slope_of_a_wide_layer_with_a_small_map(
    settings: dict[str, Any], groups: int, memory_format: torch.memory_format
) -> None:
    torch.manual_seed(5)
    convolution = nn.Conv2d(8, 128, groups=groups, **settings).double()
    x = torch.randn(2, 8, 5, 4, dtype=torch.float64).to(memory_format=memory_format)
    y = convolution(x)
    assert 2 * y[:, 0].numel() <= y.shape[1], "fewer positions than half the channels"
    expected = derivative_of_the_variance(y, convolution.weight)
    torch.testing.assert_close(slope_of(convolution, x, y), expected, rtol=1e-11, atol=1e-12)


class SamePadding(nn.Conv2d):
    """Pads for itself, more after than before, as TensorFlow does."""

    def forward(self, x: Tensor) -> Tensor:
        padded = nn.functional.pad(x, [0, 1, 0, 1])
        output: Tensor = self._conv_forward(padded, self.weight, self.bias)
        return output


class StandardizedWeight(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self._conv_forward(x, self.weight / self.weight.std(), self.bias)
        return output


def test_padding_of_a_subclass_is_recognised_by_what_it_computes() -> None:
    x = torch.randn(1, 2, 8, 8)
    plain, same, other = (
        nn.Conv2d(2, 3, 3, 2, 1),
        SamePadding(2, 3, 3, 2),
        StandardizedWeight(2, 3, 3, 2),
    )
    assert observed_padding_rule(plain, x, plain(x)) == "declared"
    assert observed_padding_rule(same, x, same(x)) == "same"
    assert observed_padding_rule(other, x, other(x)) is None


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("stride", [1, 3])
def test_the_weight_times_grid_patches_is_the_output(
    mode: Mode, memory_format: torch.memory_format, stride: int
) -> None:
    convolution, x = any_convolution(mode)
    x = x.to(memory_format=memory_format)
    y = convolution(x)
    geometry = convolution_geometry(convolution, x, (y.shape[2], y.shape[3]), "declared")
    y, geometry = every_nth_output(y, geometry, stride)
    groups = convolution.groups
    patches = grid_patches(x, geometry)
    by_group = patches.view(len(x), groups, -1, patches.shape[2])
    weight = convolution.weight.view(groups, -1, by_group.shape[2])
    expected = torch.einsum("gcf,ngfp->ngcp", weight, by_group).reshape(y.shape)
    torch.testing.assert_close(expected, y, rtol=1e-12, atol=1e-12)
