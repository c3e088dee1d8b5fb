"""Folding batch normalization into the convolution before it."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from .conversion import batch_norms, not_a_plain_batchnorm, replace_module, restore_batchnorm
from .substitute import FUSED_TAIL
from .tracing import Trace, tensors_in, trace


@dataclass(frozen=True)
class FoldEntry:
    """One batch normalization, the convolution it went into or None, and why it was left or ''."""

    name: str
    convolution: str | None
    reason: str


@dataclass(frozen=True)
class FoldReport:
    """What became of each batch normalization, and what it did to the example's output.

    Attributes:
        folded: Layers that are gone.
        left: Layers that stay, each with its reason.
        largest_difference: Largest absolute change of any value the model returned for the example
            input; rounding, if all is well.
    """

    folded: tuple[FoldEntry, ...]
    left: tuple[FoldEntry, ...]
    largest_difference: float

    def as_dict(self) -> dict[str, Any]:
        """Return the report in a form that JSON can hold."""
        return asdict(self)


def fold_batchnorm(model: nn.Module, example_input: Any) -> tuple[nn.Module, FoldReport]:
    """Fold batch normalizations into their convolutions, in place, for inference.

    A layer is folded if the example shows that it reads the output of one convolution that nothing
    else reads. It leaves its fused activation behind, or nn.Identity. Layers that
    `convert_batchnorm` made are restored first. Side effect: the model is in eval mode afterwards
    and must stay there.

    Args:
        model: The trained model.
        example_input: A tensor, or a tuple of positional arguments.

    Returns:
        The model (another object only if it is itself a BatchNorm2d) and the report.

    Raises:
        TraceError: The model could not be run on the example input.
    """
    model = restore_batchnorm(model).eval()
    found = trace(model, example_input, regularizers_active=False)
    folded: list[FoldEntry] = []
    left: list[FoldEntry] = []
    for name, norm in batch_norms(model):
        fed_by = _foldable(name, norm, found)
        if isinstance(fed_by, str):
            left.append(FoldEntry(name, None, fed_by))
            continue
        convolution_name, convolution = fed_by
        assert isinstance(norm, nn.BatchNorm2d)  # `_foldable` has seen to it.
        _fold(convolution, norm)
        model = replace_module(model, norm, _what_remains(norm))
        folded.append(FoldEntry(name, convolution_name, ""))
    after = trace(model, example_input, regularizers_active=False).output
    difference = _largest_difference(found.output, after)
    return model, FoldReport(tuple(folded), tuple(left), difference)


def _foldable(name: str, norm: nn.Module, found: Trace) -> tuple[str, nn.Conv2d] | str:
    reason = not_a_plain_batchnorm(norm)
    if reason is not None:
        return reason
    if norm.running_mean is None:
        return "it tracks no running statistics"
    fed_by = found.sole_convolution(name)
    if isinstance(fed_by, str):
        return fed_by
    readers = found.other_readers.get(fed_by[0])
    if readers:
        return f"the output of its convolution '{fed_by[0]}' is also read by {sorted(readers)}"
    return fed_by


def _fold(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    """Scale the convolution's weight and shift its bias, computed in float64 and rounded once."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    weight, bias = fuse_conv_bn_weights(
        convolution.weight.double(),
        None if convolution.bias is None else convolution.bias.double(),
        norm.running_mean.double(),
        norm.running_var.double(),
        norm.eps,
        torch.ones_like(norm.running_mean) if norm.weight is None else norm.weight.double(),
        torch.zeros_like(norm.running_mean) if norm.bias is None else norm.bias.double(),
    )
    dtype, trainable = convolution.weight.dtype, convolution.weight.requires_grad
    convolution.weight = nn.Parameter(weight.detach().to(dtype), trainable)
    convolution.bias = nn.Parameter(bias.detach().to(dtype), trainable)


def _what_remains(norm: nn.Module) -> nn.Module:
    """Return what a fused layer still has to do in eval mode."""
    parts = [getattr(norm, name, None) for name in FUSED_TAIL]
    kept = [
        part for part in parts if isinstance(part, nn.Module) and not isinstance(part, nn.Identity)
    ]
    if not kept:
        return nn.Identity()
    return (kept[0] if len(kept) == 1 else nn.Sequential(*kept)).eval()


def _largest_difference(before: Any, after: Any) -> float:
    pairs = zip(tensors_in(before), tensors_in(after), strict=True)
    differences = [_difference(old, new) for old, new in pairs if old.numel() > 0]
    return max(differences, default=0.0)


def _difference(old: Tensor, new: Tensor) -> float:
    return float((old.double() - new.double()).abs().max())
