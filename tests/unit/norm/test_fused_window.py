"""The GPU's kernels against the plain path.

Without a GPU they run in Triton's interpreter, program after program, on small maps.
"""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import norm.cross_iteration as cross_iteration
from norm import convert_batchnorm

HAS_GPU = torch.cuda.is_available()
DEVICE = "cuda" if HAS_GPU else "cpu"
CL = torch.channels_last
pytest.importorskip("triton", reason="comes with torch's builds for GPUs")


@pytest.fixture
def on_kernels(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Switch the kernels on, without a GPU too, or off."""

    def switch(wanted: bool) -> None:
        def takes(y: Tensor) -> bool:
            return wanted

        monkeypatch.setattr(cross_iteration, "takes_activations", takes)

    return switch


def converted(convolution: nn.Conv2d, **options: Any) -> nn.Module:
    net = nn.Sequential(convolution, nn.BatchNorm2d(8)).to(DEVICE)
    example = torch.zeros(2, convolution.in_channels, 11, 13, device=DEVICE)
    model, _ = convert_batchnorm(net, example, kind="cbn", window_size=3, **options)
    return model.to(memory_format=torch.channels_last).train()


def frames(count: int) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, 4, 11, 13, device=DEVICE) * (1 + 0.1 * i) + 1 for i in range(count)]


def trained(model: nn.Module, batches: list[Tensor]) -> list[Tensor]:
    """Train a step on each batch and return outputs and the inputs' gradients."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    seen = []
    for batch in batches:
        x = batch.clone(memory_format=torch.channels_last).requires_grad_()
        y = model(x)
        optimizer.zero_grad()
        (y * torch.linspace(-1, 1, y.shape[3], device=DEVICE)).square().mean().backward()
        optimizer.step()
        assert x.grad is not None
        seen += [y.detach(), x.grad]
    return seen


def assert_alike(found: Any, expected: Any) -> None:
    """Demand equality to the rounding of sums of some hundred numbers, after a few steps."""
    torch.testing.assert_close(found, expected, rtol=5e-4, atol=5e-5, equal_nan=True)


CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "3x3": {"kernel_size": 3, "padding": 1},
    "1x1": {"kernel_size": 1},
    "1x1 strided": {"kernel_size": 1, "stride": 2},
    "strided with bias": {"kernel_size": 3, "stride": 2, "padding": 1, "bias": True},
    "grouped": {"kernel_size": 3, "padding": 1, "groups": 2},
    "depthwise": {"kernel_size": (3, 5), "padding": (1, 2), "groups": 4},
    "dilated": {"kernel_size": 3, "dilation": 2, "padding": 2},
    "wide kernel": {"kernel_size": 7, "stride": 2, "padding": 3},
}
OPTIONS: dict[str, dict[str, Any]] = {
    "every position": {},
    "paper": {"slope_positions": 16, "gradient": "paper", "variance": "paper", "rho": 0.5},
    "no trust region": {"d_max": math.inf, "r_max": math.inf},
}
CASES = {
    **{name: (settings, {"slope_positions": 16}) for name, settings in CONVOLUTIONS.items()},
    **{name: (CONVOLUTIONS["3x3"], options) for name, options in OPTIONS.items()},
}


@pytest.mark.parametrize(("settings", "options"), CASES.values(), ids=CASES)
def test_the_kernels_do_what_the_plain_path_does(
    settings: dict[str, Any], options: dict[str, Any], on_kernels: Callable[[bool], None]
) -> None:
    torch.manual_seed(0)
    plain = converted(nn.Conv2d(4, 8, **{"bias": False, **settings}), **options)
    fused = copy.deepcopy(plain)
    on_kernels(False)
    expected = trained(plain, frames(4))
    on_kernels(True)
    assert_alike(trained(fused, frames(4)), expected)
    assert_alike(fused.state_dict(), plain.state_dict())


# The interpreter computes in numpy, which remarks on numbers that are not finite.
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_the_kernels_leave_a_batch_that_overflowed_out_of_the_pool(
    on_kernels: Callable[[bool], None],
) -> None:
    plain = converted(nn.Conv2d(4, 8, 3, bias=False))
    fused = copy.deepcopy(plain)
    batches = frames(3)
    batches[1][0, 2, 5, 5] = math.inf
    outputs = []
    for model, wanted in ((plain, False), (fused, True)):
        on_kernels(wanted)
        with torch.no_grad():
            outputs.append([model(batch.contiguous(memory_format=CL)) for batch in batches])
    assert outputs[1][2].isfinite().all()
    assert_alike(outputs[1], outputs[0])


def test_a_checkpointed_layer_recomputes_what_the_kernels_normalized(
    on_kernels: Callable[[bool], None],
) -> None:
    on_kernels(True)
    whole = converted(nn.Conv2d(4, 8, 3, bias=False))
    parts = copy.deepcopy(whole)
    gradients = []
    for model, recomputed in ((whole, False), (parts, True)):
        for batch in frames(2):
            x = batch.contiguous(memory_format=CL).requires_grad_()
            y = checkpoint(model, x, use_reentrant=False) if recomputed else model(x)
            y.square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert_alike(gradients[1], gradients[0])
    assert_alike(parts.state_dict(), whole.state_dict())
