"""One pass over the data that pools the moments of chosen layers' inputs."""

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .errors import OptionError
from .population_statistics import exact_statistics, pool_pair

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

    from .functional import BatchStatistics

Forward = Callable[[nn.Module, Any], Any]


class _LayerMeasured(BaseException):
    """Ends a forward pass whose rest nobody needs; a model's `except Exception` must not see it."""


class Pass:
    """What one pass over the data showed.

    While it is entered, hooks watch every layer and pool the inputs of those in `measured`.

    Attributes:
        statistics: Pooled moments of the inputs of each measured layer that ran, in the order of
            their first runs.
        runs: How often each layer ran, one entry a batch.
        frames: Images that reached the first layer.
    """

    def __init__(
        self, layers: Mapping[str, _BatchNorm], measured: Iterable[str], *, stop_at: str | None
    ) -> None:
        """Prepare a pass.

        Args:
            layers: All layers by name.
            measured: Names of those to measure.
            stop_at: A layer that runs once in a forward pass and is the last to be measured; the
                forward passes end there.
        """
        self.statistics: dict[str, BatchStatistics] = {}
        self.runs: list[dict[str, int]] = []
        self.frames = 0
        self._layers = layers
        self._measured = frozenset(measured)
        self._stop_at = stop_at
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Self:
        for name, layer in self._layers.items():
            hook = self._hook(name)
            self._handles.append(layer.register_forward_pre_hook(hook, with_kwargs=True))
        return self

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles:
            handle.remove()

    def run(self, model: nn.Module, batch: Any, forward: Forward) -> None:
        """Run the model on one batch, as far as there is something to measure."""
        self.runs.append({})
        try:
            forward(model, batch)
        except _LayerMeasured:
            return

    def runs_once(self, name: str) -> bool:
        """Return whether a layer ran once in every forward pass."""
        return all(runs.get(name) == 1 for runs in self.runs)

    def _hook(self, name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if layer.training:
                raise OptionError(f"{name} runs in training mode: `forward` must not change modes")
            y = args[0] if args else next(iter(kwargs.values()))
            runs = self.runs[-1]
            if not runs:
                self.frames += y.shape[0]
            runs[name] = runs.get(name, 0) + 1
            if name in self._measured and y.numel() > 0:
                today, past = exact_statistics(y), self.statistics.get(name)
                self.statistics[name] = today if past is None else pool_pair(past, today)
            if name == self._stop_at:
                raise _LayerMeasured

        return hook


def run_pass(
    model: nn.Module,
    loader: Iterable[Any],
    forward: Forward,
    layers: Mapping[str, _BatchNorm],
    measured: Iterable[str],
    *,
    stop_at: str | None = None,
) -> Pass:
    """Run the model on every batch and return what the layers in `measured` got to see.

    Tensors of a batch are moved to the device of the first layer. Torch's random state is put back,
    so that a loader which shuffles or crops by it gives the same batches in the next pass.
    """
    buffer = next(iter(next(iter(layers.values())).buffers()))
    devices = [buffer.device.index or 0] if buffer.device.type == "cuda" else []
    seen = Pass(layers, measured, stop_at=stop_at)
    with seen, torch.random.fork_rng(devices=devices):
        for batch in loader:
            seen.run(model, _moved(batch, buffer.device), forward)
    return seen


def _moved(value: Any, device: torch.device) -> Any:
    """Return `value` with the tensors in nested tuples, lists and dicts on `device`."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _moved(part, device) for key, part in value.items()}
    if isinstance(value, (tuple, list)):
        parts = [_moved(part, device) for part in value]
        named = isinstance(value, tuple) and hasattr(value, "_fields")
        return type(value)(*parts) if named else type(value)(parts)
    return value


def run_on_positional(model: nn.Module, batch: Any) -> Any:
    """Call the model with a tensor, or with a tuple of positional arguments.

    Raises:
        OptionError: The batch is neither.
    """
    if isinstance(batch, Tensor):
        return model(batch)
    if not isinstance(batch, tuple):
        raise OptionError(
            f"a batch is a {type(batch).__name__}, neither a tensor nor a tuple of positional "
            "arguments; give `forward`, for example forward=lambda model, batch: model(batch[0])"
        )
    try:
        return model(*batch)
    except TypeError as error:
        error.add_note(
            f"The {len(batch)} parts of a batch were passed as positional arguments; give "
            "`forward` to pass others, for example forward=lambda model, batch: model(batch[0])"
        )
        raise
