"""Who takes part in the cost benchmark, and what their models keep between two steps."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from benchmarks.norm.transcription import PlainCrossIterationBatchNorm2d, transcribe
from norm import ConversionReport, convert_batchnorm

BASELINE = "bn"
# `norm` remembers a few numbers of the last passes for activation checkpointing.
MAX_SETTLING_PASSES = 256

Conversion = Callable[[nn.Module, Tensor, int], tuple[nn.Module, ConversionReport]]


@dataclass(frozen=True)
class Contestant:
    """One way to normalize.

    Attributes:
        name: Its name in results and tables.
        has_window: Whether its cost depends on the window size.
        convert: Puts it into the model, given an example input and the window size.
    """

    name: str
    has_window: bool
    convert: Conversion


def _kind(kind: Any, **options: Any) -> Conversion:
    return lambda model, x, _: convert_batchnorm(model, x, kind=kind, **options)


def _cbn(**options: Any) -> Conversion:
    return lambda model, x, k: convert_batchnorm(model, x, kind="cbn", window_size=k, **options)


CONTESTANTS = (
    Contestant(BASELINE, False, _kind("bn")),
    Contestant("gn", False, _kind("gn")),
    Contestant("brn", False, _kind("brn")),
    Contestant("cbn", True, _cbn()),
    Contestant("cbn slope_positions=all", True, _cbn(slope_positions=None)),
    Contestant("cbn slope_positions=64", True, _cbn(slope_positions=64)),
    Contestant("cbn slope_rank=4", True, _cbn(slope_rank=4)),
    Contestant("cbn slope_rank=8", True, _cbn(slope_rank=8)),
    Contestant("cbn history=exponential", True, _cbn(history="exponential")),
    Contestant("cbn history_dtype=bfloat16", True, _cbn(history_dtype=torch.bfloat16)),
    Contestant("transcription", True, lambda model, x, k: transcribe(model, x, window_size=k)),
)


@dataclass
class Entrant:
    """A contestant's own model and how it is trained.

    Attributes:
        name: The contestant's.
        body: The model.
        optimizer: Plain SGD over all its parameters.
        precision: "float32", or "bfloat16" for autocast.
    """

    name: str
    body: nn.Module
    optimizer: torch.optim.Optimizer
    precision: str

    def step(self, x: Tensor) -> Tensor:
        """Train one step and return the loss, the mean of the last feature map."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._output(x).float().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return loss.detach()

    @torch.no_grad()
    def settle(self, x: Tensor) -> None:
        """Run forward passes in training mode until the model holds no more after one than before.

        Raises:
            RuntimeError: It goes on holding more.
        """
        for _ in range(MAX_SETTLING_PASSES):
            before = held_bytes(self.body)
            self._output(x)
            if held_bytes(self.body) == before:
                return
        raise RuntimeError(
            f"{self.name} still holds more after each of {MAX_SETTLING_PASSES} forward passes"
        )

    def _output(self, x: Tensor) -> Tensor:
        autocast = self.precision == "bfloat16"
        with torch.autocast(x.device.type, torch.bfloat16, enabled=autocast):
            output: Tensor = self.body(x)
        return output


def resnet50_body() -> nn.Module:
    """Return torchvision's ResNet-50 up to layer4, from seeded random weights."""
    torch.manual_seed(0)
    network = torchvision.models.resnet50(weights=None)
    return nn.Sequential(*list(network.children())[:-2])


def history_bytes(model: nn.Module) -> int:
    """Return the bytes of a model's buffers and of the transcription's lists, each tensor once."""
    found = list(model.buffers())
    for module in model.modules():
        if isinstance(module, PlainCrossIterationBatchNorm2d):
            found += module.history()
    return _storage_bytes(found)


def held_bytes(model: nn.Module) -> int:
    """Return the bytes of every tensor that a model's modules hold beside their parameters.

    Tensors are found wherever a module holds them: in buffers, lists or objects of its own.
    """
    found = list(model.buffers())
    for module in model.modules():
        own = vars(module).items()
        # Other modules' tensors come up with those modules.
        registered = ("_parameters", "_buffers", "_modules")
        found += held_tensors([value for name, value in own if name not in registered])
    return _storage_bytes(found)


def _storage_bytes(tensors: Iterable[Tensor]) -> int:
    # A view keeps the whole storage alive, and several tensors may share one.
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def held_tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in containers and plain objects, but for parameters and modules' own."""
    if isinstance(value, Tensor):
        if not isinstance(value, nn.Parameter):
            yield value
    elif isinstance(value, Mapping):
        yield from held_tensors(list(value.values()))
    elif isinstance(value, (list, tuple, set, deque)):
        for part in value:
            yield from held_tensors(part)
    elif hasattr(value, "__dict__") and not isinstance(value, (nn.Module, type)):
        yield from held_tensors(list(vars(value).values()))


def convolution_weight_bytes(model: nn.Module) -> int:
    """Return the bytes of one float32 copy of every convolution's weight."""
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    return 4 * sum(layer.weight.numel() for layer in layers)
