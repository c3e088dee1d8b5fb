"""Operators that return as much as values say, gone through where there are no values.

A detector chooses: which anchors a box fits, which of them it learns from, which boxes it keeps.
"""

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

_ATEN = torch.ops.aten
_INDEX_KINDS = (torch.bool, torch.uint8)


# torch states no types for its modes.
class MostOfUnknownSize(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Lets operators on fake tensors return the most that they may, where values would decide.

    Suppression keeps every box, and a mask in one dimension has every place set.  What is known is
    less: of pairs in two dimensions one in each row or column, and of a mask of bytes that began
    empty as many places as were written, which is how torchvision's samplers mark what they drew.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._written: Any = WeakTensorKeyDictionary()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Answer an operator of unknown size; run any other, and note which bytes it writes."""
        first = args[0] if args else None
        if isinstance(first, FakeTensor):
            if func is _ATEN.nonzero.default:
                return _places(first, self._set_at_most(first), first.dim())
            if func is torch.ops.torchvision.nms.default:
                return _places(first, len(first))
            if func is _ATEN._unique2.default:  # noqa: SLF001 - what `torch.unique` comes to.
                return first.new_empty(1), _places(first, 1), _places(first, 1)
            if func is _ATEN.index.Tensor:
                indices = [part for given in args[1] for part in self._whole_numbers(given)]
                return func(first, indices)
        result = func(*args, **(kwargs or {}))
        self._note(func, args, result)
        return result

    def _set_at_most(self, mask: Tensor) -> int:
        """Return how many places of a mask are set at most, as far as that is known."""
        if mask in self._written:
            return min(int(self._written[mask]), mask.numel())
        return max(mask.shape) if mask.dim() > 0 and mask.numel() > 0 else mask.numel()

    def _whole_numbers(self, index: Tensor | None) -> list[Tensor | None]:
        """Return an index as indexing takes it without looking at values."""
        if index is None or index.dtype not in _INDEX_KINDS:
            return [index]
        return [_places(index, self._set_at_most(index)) for _ in range(index.dim())]

    def _note(self, func: Any, args: Any, result: Any) -> None:
        """Remember how many places of a mask of bytes have been written."""
        if func is _ATEN.cat.default:
            written = [self._written.get(part) for part in args[0]]
        elif func is _ATEN.bitwise_or.Tensor:
            written = [self._written.get(part) for part in args]
        elif func is _ATEN.index_put_.default and args[0].dtype == torch.uint8:
            (places,) = args[1]
            written = [self._written.get(args[0], 0), places.numel()]
        else:
            return
        if None not in written:
            self._written[result] = sum(written)


def _places(like: Tensor, count: int, dimensions: int | None = None) -> Tensor:
    shape = (count,) if dimensions is None else (count, dimensions)
    return like.new_empty(shape, dtype=torch.int64)
