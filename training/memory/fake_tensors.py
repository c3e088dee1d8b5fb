"""Tensors that have a shape and no memory, to go through a step at a size that may not fit."""

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

Network = TypeVar("Network", bound=nn.Module)


# Who asks whether a loss is finite or two batches are nearly the same gets the answer of a step
# that goes well; an optimizer divides by what it makes of its step count, so it is not zero.
SMALL = 1e-3
_HAND_OVER = torch.ops.aten._local_scalar_dense.default  # noqa: SLF001 - that operator's name.


# torch states no types for its modes.
class SmallForUnknown(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Answers whoever asks a fake tensor for its value with a small positive number."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run any operator but the one that hands a value of a fake tensor to Python."""
        if func is _HAND_OVER and isinstance(args[0], FakeTensor):
            dtype: torch.dtype = args[0].dtype
            return False if dtype == torch.bool else SMALL if dtype.is_floating_point else 1
        return func(*args, **(kwargs or {}))


def fake_copy(module: Network, mode: FakeTensorMode) -> Network:
    """Return a deep copy whose parameters and buffers are fake; the module is left as it is."""
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        fake = nn.Parameter(_fake(parameter, mode), requires_grad=parameter.requires_grad)
        memo[id(parameter)] = fake
    for buffer in module.buffers():
        memo[id(buffer)] = _fake(buffer, mode)
    return copy.deepcopy(module, memo)


def _fake(tensor: Tensor, mode: FakeTensorMode) -> Tensor:
    with mode:
        return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="cpu")
