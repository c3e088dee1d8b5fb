"""The thread between a normalization layer and the convolution before it."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .convolution_moments import PaddingRule
from .errors import HandoverError
from .recomputation import recomputing


class HandedOver(NamedTuple):
    """One forward pass of the convolution: its input, its output, and the output's version."""

    x: Tensor
    output: Tensor
    version: int


def tensor_version(tensor: Tensor) -> int:
    """Return a counter of in-place changes; inference tensors cannot be changed and have none.

    A compiled graph has no such counter and is given 0.
    """
    if torch.compiler.is_compiling():
        return 0
    # There is no public name for it, though autograd's own error messages quote it.
    return 0 if tensor.is_inference() else tensor._version  # noqa: SLF001


class ConvolutionBinding:
    """Hands a convolution's input to the layer that normalizes its output, once a forward pass.

    It is a forward hook of the convolution and an ordinary attribute of the layer, so neither
    module is registered twice and no state_dict changes. Because it is an object and not a closure,
    a deep copy of the model copies it along with both modules and binds the copies. The input is
    held from the end of the convolution to the start of the layer and is never copied or pickled.

    Attributes:
        convolution: The convolution.
        norm: The layer its output goes to.
        padding_rule: How the convolution pads.
        label: Name of the layer in its model, for messages.
    """

    def __init__(
        self, convolution: nn.Conv2d, norm: nn.Module, padding_rule: PaddingRule, label: str
    ) -> None:
        self.convolution = convolution
        self.norm = norm
        self.padding_rule = padding_rule
        self.label = label
        self._handed_over: HandedOver | None = None
        self._hook = convolution.register_forward_hook(self, with_kwargs=True)

    def __call__(
        self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> None:
        """Keep the convolution's input if the layer is about to ask for it."""
        # A recomputed layer takes no statistics, and might not even run again.
        if self.norm.training and not recomputing():
            x = args[0] if args else kwargs["input"]
            self._handed_over = HandedOver(x, output, tensor_version(output))

    def take(self, y: Tensor) -> Tensor:
        """Return the input that made `y`, detached, and forget it.

        Raises:
            HandoverError: The convolution has not run, or `y` is not what it returned.
        """
        handed_over, self._handed_over = self._handed_over, None
        if handed_over is None:
            raise HandoverError(
                f"{self.label}: its convolution has not run since the last forward pass. Run them "
                "together, call both as modules, and convert after replicating or wrapping them."
            )
        if handed_over.output is not y or handed_over.version != tensor_version(y):
            raise HandoverError(
                f"{self.label}: its input is not what its convolution returned. Something between "
                "the two changes the tensor in training mode; convert this layer to another kind."
            )
        return handed_over.x.detach()

    def release(self) -> None:
        """Take the hook off the convolution and forget everything handed over."""
        self._hook.remove()
        self._handed_over = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handed_over": None}
