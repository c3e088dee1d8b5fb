"""Which convolution's output reaches which batch normalization, found by running the model once."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from .binding import tensor_version
from .convolution_moments import PaddingRule, observed_padding_rule
from .errors import TraceError

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle


class Producer(NamedTuple):
    """The module that returned a tensor, and the tensor's version when it did."""

    name: str
    module: nn.Module
    version: int


@dataclass
class Trace:
    """What one run of a model showed; modules go by their first name in the model.

    Attributes:
        producers: For each batch normalization that ran, the module whose output it got, one entry
            a call; None where the tensor came from no module (an addition, a concatenation).
        calls: How often each convolution ran.
        padding_rules: How each Conv2d that ran pads; None if it is no plain convolution.
        other_readers: For each module, what else than a batch normalization read its output.
        output: What the model returned.
    """

    producers: dict[str, list[Producer | None]] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    padding_rules: dict[str, PaddingRule | None] = field(default_factory=dict)
    other_readers: dict[str, set[str]] = field(default_factory=dict)
    output: Any = None

    def consumers(self, convolution: str) -> list[str]:
        """Name the batch normalizations that read this convolution's output."""
        return [
            name
            for name, calls in self.producers.items()
            if any(producer is not None and producer.name == convolution for producer in calls)
        ]

    def sole_convolution(self, norm: str) -> tuple[str, nn.Conv2d] | str:
        """Return the plain Conv2d that alone feeds `norm` and nothing but it, or why there is none.

        Args:
            norm: Name of a batch normalization.
        """
        calls = self.producers.get(norm, [])
        if not calls:
            return "it did not run on the example input"
        if len(calls) > 1:
            return f"it runs {len(calls)} times a forward pass"
        producer = calls[0]
        if producer is None:
            return "its input is not the output of a convolution"
        if not isinstance(producer.module, nn.Conv2d):
            kind = type(producer.module).__name__
            return f"its input is the output of {kind} '{producer.name}', not of a Conv2d"
        reason = self._unfit(producer.name, producer.module)
        return reason or (producer.name, producer.module)

    def _unfit(self, name: str, convolution: nn.Conv2d) -> str | None:
        if self.calls[name] > 1:
            return f"its convolution '{name}' runs {self.calls[name]} times a forward pass"
        consumers = self.consumers(name)
        if len(consumers) > 1:
            return f"its convolution '{name}' feeds {' and '.join(consumers)}"
        if "weight" not in dict(convolution.named_parameters(recurse=False)):
            return f"the weight of its convolution '{name}' is computed, not a parameter"
        if self.padding_rules[name] is None:
            return (
                f"its convolution '{name}' ({type(convolution).__name__}) is no plain convolution"
            )
        return None


def trace(model: nn.Module, example_input: Any, *, regularizers_active: bool) -> Trace:
    """Run `model` once without gradients and note where every batch normalization's input is made.

    The mode of every module, every buffer, the hooks and the random state are put back, also when
    the run fails. Batch normalizations run in eval mode.

    Args:
        model: The model.
        example_input: A tensor, or a tuple of the positional arguments.
        regularizers_active: Run modules without children in training mode, so that a dropout
            between a convolution and a normalization is seen. Modules with children stay in
            eval mode: detection models ask for targets in training mode.

    Raises:
        TraceError: The model raised on the example input.
    """
    recorder = _Recorder(model)
    arguments = example_input if isinstance(example_input, tuple) else (example_input,)
    with left_as_found(model), recorder, torch.no_grad():
        model.eval()
        if regularizers_active:
            for module in model.modules():
                leaf = next(module.children(), None) is None
                module.training = leaf and not isinstance(module, _NormBase)
        try:
            output = model(*arguments)
        except Exception as error:
            raise TraceError(
                f"{type(model).__name__} could not be run on the example input: {error}"
            ) from error
        recorder.note_returned(output)
    return recorder.trace


@contextmanager
def left_as_found(model: nn.Module) -> Iterator[None]:
    """Put modes, buffers and random state back when the block ends, however it ends."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    devices = {p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"}
    try:
        with torch.random.fork_rng(devices=sorted(devices)):
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)


class _Recorder(TorchFunctionMode):
    """Hooks on every leaf, and an eye on every torch function called outside a normalization."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.trace = Trace()
        self._model = model
        # Weak keys: a tensor that nobody needs any more must not live until the run ends.
        self._made: Any = WeakIdKeyDictionary()
        self._handles: list[RemovableHandle] = []
        self._unobserved = 0

    def __enter__(self) -> Self:
        for name, module in self._model.named_modules():
            if isinstance(module, _BatchNorm):
                self._handles += [
                    module.register_forward_pre_hook(self._enter_norm(name)),
                    module.register_forward_hook(self._leave_norm(), always_call=True),
                ]
            elif next(module.children(), None) is None or isinstance(module, nn.Conv2d):
                hook = self._after_leaf(name)
                self._handles.append(module.register_forward_hook(hook, with_kwargs=True))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: object) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        for handle in self._handles:
            handle.remove()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self._unobserved and next(tensors_in(result), None) is not None:
            for tensor in tensors_in((args, kwargs)):
                self._note_reader(tensor, getattr(func, "__name__", str(func)))
        return result

    def note_returned(self, output: Any) -> None:
        """Note the tensors that leave the model as read by its caller."""
        self.trace.output = output
        for tensor in tensors_in(output):
            self._note_reader(tensor, "the model's caller")

    def _note_reader(self, tensor: Tensor, reader: str) -> None:
        producer = self._made.get(tensor)
        if producer is not None:
            self.trace.other_readers.setdefault(producer.name, set()).add(reader)

    def _enter_norm(self, name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            producer = self._made.get(args[0]) if args else None
            if producer is not None and producer.version != tensor_version(args[0]):
                producer = None
            self.trace.producers.setdefault(name, []).append(producer)
            self._unobserved += 1

        return hook

    def _leave_norm(self) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            self._unobserved -= 1

        return hook

    def _after_leaf(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if not isinstance(output, Tensor) or self._unobserved:
                return
            known = self._made.get(output)
            if known is not None and known.version == tensor_version(output):
                return  # The leaf handed its input on untouched.
            self._made[output] = Producer(name, module, tensor_version(output))
            self.trace.calls[name] = self.trace.calls.get(name, 0) + 1
            if isinstance(module, nn.Conv2d):
                x = args[0] if args else kwargs["input"]
                self._unobserved += 1
                self.trace.padding_rules[name] = _padding_rule(module, x, output)
                self._unobserved -= 1

        return hook


def _padding_rule(convolution: nn.Conv2d, x: Tensor, output: Tensor) -> PaddingRule | None:
    kind = type(convolution)
    own = [getattr(kind, name) for name in ("forward", "_conv_forward")]
    if own == [getattr(nn.Conv2d, name) for name in ("forward", "_conv_forward")]:
        return "declared"
    return observed_padding_rule(convolution, x, output)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield every tensor in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from tensors_in(part)
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from tensors_in(part)
