"""Counting the bytes that tensors hold, operator by operator, on real or fake tensors."""

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


# torch states no types for its modes.
class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is entered, knows how many bytes the tensors hold that operators returned.

    A storage counts from the operator that returned it until nothing refers to it any more, what
    autograd saved for the backward pass included; views of it count once.  What an operator
    allocates and frees within itself is not seen.

    Attributes:
        live_bytes: Now.
        peak_bytes: The most at any time since `reset_peak`.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live_bytes = 0
        self.peak_bytes = 0
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def watch(self, tensors: Iterable[Tensor]) -> None:
        """Count tensors that were there before."""
        for tensor in tensors:
            self._add(tensor.untyped_storage())

    def reset_peak(self) -> None:
        """Forget earlier peaks."""
        self.peak_bytes = self.live_bytes

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata  # noqa: SLF001 - the address that all views of a storage share.
        if key in self._known:
            return
        size = storage.nbytes()

        def freed(_: Any) -> None:
            del self._known[key]
            self.live_bytes -= size

        self._known[key] = weakref.ref(storage, freed)
        self.live_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operator and count what it returned."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._add(leaf.untyped_storage())
        return result
