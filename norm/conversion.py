"""Turning a model's batch normalizations into another kind and back."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, get_args

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .cross_iteration import CrossIterationBatchNorm2d
from .errors import OptionError
from .optional_state import OptionalState
from .other_normalizations import other_normalization
from .ranks import leave_windows_to_each_rank
from .renorm import BatchRenorm2d
from .substitute import (
    FUSED_TAIL,
    FrozenBatchNorm2d,
    GroupNorm2d,
    SubstituteBatchNorm2d,
    share_state,
    take_place,
)
from .tracing import Trace, trace

Kind = Literal["bn", "cbn", "brn", "gn", "frozen"]
DEFAULT_GROUPS = 32


@dataclass(frozen=True)
class ConversionEntry:
    """One normalization layer of the model.

    Attributes:
        name: Its name in the model.
        convolution: Name of the convolution that alone feeds it; None if there is none, if the
            layer is no batch normalization, or if nobody looked for it.
        kind: What it is now. A converted layer is one of `Kind`. A layer that was left is "bn" for
            any batch normalization, "frozen", "gn", "ln" (layer), "in" (instance), "rms" (root
            mean square) or "lrn" (local response), or the name of a class known by name alone.
        reason: Why it was left, or what is worth knowing about its conversion; may be empty.
    """

    name: str
    convolution: str | None
    kind: str
    reason: str


@dataclass(frozen=True)
class ConversionReport:
    """Every normalization layer of a model, by what became of it.

    Layers that are no batch normalization of torch's are among those that were left. Only a
    normalization that is a function call inside another module cannot be seen.
    """

    converted: tuple[ConversionEntry, ...]
    left: tuple[ConversionEntry, ...]

    def as_dict(self) -> dict[str, list[dict[str, str | None]]]:
        """Return the report in a form that JSON can hold."""
        return {
            "converted": [asdict(entry) for entry in self.converted],
            "left": [asdict(entry) for entry in self.left],
        }


class _Outcome(NamedTuple):
    """A substitute, or None for a layer that is left, and what to report."""

    layer: nn.Module | None
    reason: str


def convert_batchnorm(
    model: nn.Module, example_input: Any, *, kind: Kind, **options: Any
) -> tuple[nn.Module, ConversionReport]:
    """Replace the model's BatchNorm2d layers in place and report every normalization layer.

    The convolution that feeds a layer is found by running the model once; modes, buffers and random
    state are put back. Substitutes share parameters and buffers with the layers they replace,
    keep a fused dropout and activation (timm's BatchNormAct2d), and use the same state_dict names.
    Layers converted before are restored first, so kinds can be changed.

    "cbn" needs the convolution and leaves layers without one as they are. "gn" gives each layer the
    largest number of groups that divides its channels, is at most `num_groups` and leaves
    at least two channels a group (one would be instance normalization).

    Args:
        model: The model, not yet wrapped for several devices.
        example_input: A tensor, or a tuple of positional arguments; small is enough.
        kind: What to make of the layers; "bn" only restores.
        **options: For "cbn" and "brn" the keyword options of the layer, `momentum` included, for
            "gn" `num_groups`.

    Returns:
        The model (another object only if it is itself a BatchNorm2d) and the report.

    Raises:
        OptionError: The kind or an option is unknown or out of range; the model is unchanged.
        TraceError: The model could not be run on the example input.
    """
    if kind not in get_args(Kind):
        raise OptionError(f"kind must be one of {get_args(Kind)}, got {kind!r}")
    _check_options(kind, options)
    model = restore_batchnorm(model)
    found = trace(model, example_input, regularizers_active=True)
    return _replace_all(model, kind, found, options)


def freeze_batchnorm(model: nn.Module) -> tuple[nn.Module, ConversionReport]:
    """Put a FrozenBatchNorm2d in the place of every BatchNorm2d, in place.

    The same as `convert_batchnorm` with kind "frozen", but the model is not run, so no example
    input is needed and no convolution is named. Layers converted before are restored first, and
    their history is dropped. `restore_batchnorm` takes it back.

    Args:
        model: The model, not yet wrapped for several devices.

    Returns:
        The model (another object only if it is itself a BatchNorm2d) and the report.
    """
    return _replace_all(restore_batchnorm(model), "frozen", Trace(), {})


def _replace_all(
    model: nn.Module, kind: Kind, found: Trace, options: dict[str, Any]
) -> tuple[nn.Module, ConversionReport]:
    converted: list[ConversionEntry] = []
    left: list[ConversionEntry] = []
    for name, norm in list(model.named_modules()):
        if not isinstance(norm, _BatchNorm):
            other = other_normalization(name, norm)
            if other is not None:
                left.append(ConversionEntry(name, None, other.kind, other.reason))
            continue
        fed_by = found.sole_convolution(name)
        convolution = None if isinstance(fed_by, str) else fed_by[0]
        outcome = _substitute(name, norm, kind, found, options)
        if outcome.layer is None:
            left.append(ConversionEntry(name, convolution, "bn", outcome.reason))
            continue
        converted.append(ConversionEntry(name, convolution, kind, outcome.reason))
        model = replace_module(model, norm, outcome.layer)
    leave_windows_to_each_rank(model)
    return model, ConversionReport(tuple(converted), tuple(left))


def restore_batchnorm(model: nn.Module) -> nn.Module:
    """Put the batch normalizations back that `convert_batchnorm` replaced, in place.

    What the model computes in eval mode does not change: each layer is the one it was, with today's
    parameters and running statistics, and the history is dropped. A GroupNorm stays, because it has
    no running statistics to hand back and no batch normalization computes the same.

    Returns:
        The model (another object only if it is itself a converted layer).
    """
    for layer in list(model.modules()):
        if isinstance(layer, SubstituteBatchNorm2d):
            model = replace_module(model, layer, _restored(layer))
    return model


def plain_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Return the state_dict that the model would have after `restore_batchnorm`, not touching it.

    Windows and step counters are left out; what remains loads strictly into the model as it was
    before its conversion, and back into a converted one, whose windows then start empty. A
    GroupNorm2d has no running statistics to give, so a model converted to "gn" loads into another
    one of that kind only.

    Returns:
        An OrderedDict as `model.state_dict()` returns it: tensors are shared with the model.
    """
    state: dict[str, Tensor] = model.state_dict()
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, OptionalState):
            for key in [key for key in state if key.startswith(f"{name}.")]:
                del state[key]
    return state


def _restored(layer: SubstituteBatchNorm2d) -> nn.Module:
    if isinstance(layer, CrossIterationBatchNorm2d):
        layer.unbind()
    if layer.replaced is None:
        original: nn.Module = nn.BatchNorm2d(
            layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats
        )
    else:
        original = layer.replaced.module
    share_state(layer, original)
    for name in FUSED_TAIL:
        part = getattr(layer, name, None)
        if isinstance(part, nn.Module):
            original.add_module(name, part)
    original.training = layer.training
    return original


def batch_norms(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield every batch normalization with its first name; the model may change meanwhile."""
    for name, module in list(model.named_modules()):
        if isinstance(module, _BatchNorm):
            yield name, module


def _check_options(kind: Kind, options: dict[str, Any]) -> None:
    """Build one layer to hear about a bad option before the model is touched."""
    try:
        if kind == "cbn":
            CrossIterationBatchNorm2d(1, **options)
        elif kind == "brn":
            BatchRenorm2d(1, **options)
        elif kind == "gn":
            _groups(1, **options)
        elif options:
            raise OptionError(f"kind {kind!r} takes no options, got {sorted(options)}")
    except TypeError as error:
        raise OptionError(f"kind {kind!r} does not take these options: {error}") from error
    fixed = sorted({"eps", "affine", "track_running_stats"} & options.keys())
    if fixed:
        raise OptionError(f"{fixed} are the replaced layer's own and cannot be given as options")


def _substitute(
    name: str, norm: nn.Module, kind: Kind, found: Trace, options: dict[str, Any]
) -> _Outcome:
    reason = not_a_plain_batchnorm(norm)
    if reason is not None:
        return _Outcome(None, reason)
    assert isinstance(norm, nn.BatchNorm2d)  # `not_a_plain_batchnorm` has seen to it.
    if kind == "bn":
        return _Outcome(norm, "")
    makers: dict[str, Callable[[], _Outcome]] = {
        "cbn": lambda: _cross_iteration(name, norm, found, options),
        "brn": lambda: _batch_renorm(norm, options),
        "gn": lambda: _group_norm(norm, options),
        "frozen": lambda: _frozen(norm),
    }
    return makers[kind]()


def not_a_plain_batchnorm(norm: nn.Module) -> str | None:
    """Say why `norm` does not compute what an nn.BatchNorm2d with a fused tail does, or None."""
    kind = type(norm).__name__
    if isinstance(norm, nn.SyncBatchNorm):
        return (
            f"{kind} is no BatchNorm2d: convert the model before "
            "nn.SyncBatchNorm.convert_sync_batchnorm, or put an nn.BatchNorm2d that has loaded its "
            "state_dict in its place"
        )
    if not isinstance(norm, nn.BatchNorm2d):
        return f"{kind} is no BatchNorm2d: its input is no batch of images (N, C, H, W)"
    if type(norm).forward is not nn.BatchNorm2d.forward and not has_fused_tail(norm):
        return f"{kind} has a forward pass of its own"
    return None


def has_fused_tail(norm: nn.Module) -> bool:
    """Say whether `norm` runs a dropout and an activation of its own, as timm's layers do."""
    return all(isinstance(getattr(norm, name, None), nn.Module) for name in FUSED_TAIL)


def _arguments(norm: nn.BatchNorm2d) -> dict[str, Any]:
    return {
        "num_features": norm.num_features,
        "eps": norm.eps,
        "affine": norm.affine,
        "track_running_stats": norm.track_running_stats,
    }


def _cross_iteration(
    name: str, norm: nn.BatchNorm2d, found: Trace, options: dict[str, Any]
) -> _Outcome:
    fed_by = found.sole_convolution(name)
    if isinstance(fed_by, str):
        return _Outcome(None, fed_by)
    convolution_name, convolution = fed_by
    layer = CrossIterationBatchNorm2d(**{**_arguments(norm), "momentum": norm.momentum, **options})
    layer.to(convolution.weight.device)
    take_place(layer, norm)
    rule = found.padding_rules[convolution_name]
    assert rule is not None  # `sole_convolution` lets only plain convolutions through.
    layer.bind(convolution, padding_rule=rule, label=name)
    return _Outcome(layer, "")


def _batch_renorm(norm: nn.BatchNorm2d, options: dict[str, Any]) -> _Outcome:
    if norm.running_mean is None:
        return _Outcome(None, "it tracks no running statistics")
    layer = BatchRenorm2d(**{**_arguments(norm), **options})
    layer.to(norm.running_mean.device)
    take_place(layer, norm)
    if layer.momentum == norm.momentum:
        return _Outcome(layer, "")
    return _Outcome(layer, f"moving-average rate {layer.momentum} in place of {norm.momentum}")


def _group_norm(norm: nn.BatchNorm2d, options: dict[str, Any]) -> _Outcome:
    groups = _groups(norm.num_features, **options)
    layer = GroupNorm2d(groups, norm.num_features, norm.eps, norm.affine)
    take_place(layer, norm)
    if groups == options.get("num_groups", DEFAULT_GROUPS):
        return _Outcome(layer, "")
    return _Outcome(layer, f"{groups} groups for {norm.num_features} channels")


def _groups(channels: int, *, num_groups: int = DEFAULT_GROUPS) -> int:
    if num_groups < 1:
        raise OptionError(f"num_groups must be at least 1, got {num_groups}")
    most = max(1, min(num_groups, channels // 2))
    return next(groups for groups in range(most, 0, -1) if channels % groups == 0)


def _frozen(norm: nn.BatchNorm2d) -> _Outcome:
    if norm.running_mean is None:
        return _Outcome(None, "it tracks no running statistics")
    layer = FrozenBatchNorm2d(**_arguments(norm))
    take_place(layer, norm)
    return _Outcome(layer, "")


def replace_module(model: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    """Put `new` wherever `old` is registered and return the model."""
    if model is old:
        return new
    # A layer that is registered twice has two names and must be replaced under both.
    names = [name for name, module in model.named_modules(remove_duplicate=False) if module is old]
    for name in names:
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, new)
    return model
