"""torch.compile takes a converted model whole, and the compiled model is the same one."""

import copy

import pytest
import torch
from torch import Tensor, nn

from norm import convert_batchnorm
from norm.conversion import Kind

VARIANTS: list[tuple[Kind, dict[str, object]]] = [
    ("brn", {"total_steps": 16}),
    ("frozen", {}),
    ("cbn", {}),
    ("cbn", {"window_size": 1}),
    ("cbn", {"gradient": "paper", "variance": "paper", "burn_in_steps": 2}),
    ("cbn", {"history": "exponential", "window_size": 16}),
    ("cbn", {"slope_positions": 16, "history_dtype": torch.bfloat16}),
    ("cbn", {"window_size": 4, "slope_rank": 1}),
]


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.first_norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 3, stride=2, groups=2, bias=False)
        self.second_norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first_norm(self.first(x)).relu()
        output: Tensor = self.second_norm(self.second(x))
        return output


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    # Compiled variants of one class would count towards the limit of recompilations.
    torch._dynamo.reset()


@pytest.mark.parametrize(("kind", "options"), VARIANTS)
def test_a_compiled_model_trains_and_judges_as_the_uncompiled_one(
    kind: Kind, options: dict[str, object]
) -> None:
    torch.manual_seed(0)
    plain, _ = convert_batchnorm(Network(), torch.zeros(1, 2, 8, 8), kind=kind, **options)
    twin = copy.deepcopy(plain)
    # fullgraph raises at a graph break.  The back end differentiates and traces as the default one
    # does, fake kernels included, and then runs the graph without a C++ compiler.
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    generator = torch.Generator().manual_seed(3)
    for _ in range(10):
        x = torch.randn(1, 2, 16, 16, generator=generator)
        outputs = [plain(x), compiled(x)]
        torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-5, atol=1e-5)
        for output, model in zip(outputs, (plain, twin), strict=True):
            output.square().mean().backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.grad is not None:
                        parameter.sub_(0.05 * parameter.grad)
                        parameter.grad = None
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(twin.state_dict()[name], value, rtol=1e-4, atol=1e-5)
    x = torch.randn(1, 2, 16, 16, generator=generator)
    twin.eval()
    torch.testing.assert_close(compiled(x), plain.eval()(x), rtol=1e-4, atol=1e-5)
