"""True population statistics at the final weights.

Wu and Johnson, *Rethinking "Batch" in BatchNorm*, arXiv 2105.07576, section 3. Their PreciseBN
normalizes by batch statistics on the way, so its result depends on how the data is split into
batches. Here the model runs in eval mode, and the layers are written one after the other in the
order in which they run, each after a pass over the data that shows its input as the layers before
it leave it now.

Writing all layers after every pass needs as many passes and diverges on the way: where every stored
deviation is wrong by 10 %, the input of layer l is wrong by 1.1^(l-1), and in the next pass by
1.1^((l-1)(l-2)/2), which is beyond 10^16 at layer 30.
"""

import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .conversion import has_fused_tail
from .errors import OptionError, RecalibrationError
from .measurement import Forward, Pass, run_on_positional, run_pass
from .other_normalizations import other_normalization
from .population_statistics import RunningStatistics, change_in_deviations
from .substitute import SubstituteBatchNorm2d
from .tracing import left_as_found

if TYPE_CHECKING:
    from .functional import BatchStatistics

# The first sweep is exact unless a layer's input depends on its own output or the data changes.
DEFAULT_MAX_SWEEPS = 2
# Repeating a pass gives the same bits on a CPU and differs by rounding on a GPU, which is far less.
DEFAULT_TOLERANCE = 1e-4
_FORWARDS_OF_TORCH = (_BatchNorm.forward, nn.SyncBatchNorm.forward)


@dataclass(frozen=True)
class RecalibratedLayer:
    """One layer whose running statistics are those of the data now.

    Attributes:
        name: Its name in the model.
        positions: Values a channel that were pooled.
        change: Largest difference between its old and new statistics, in deviations.
    """

    name: str
    positions: int
    change: float


@dataclass(frozen=True)
class UntouchedLayer:
    """One layer that was left as it was, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class RecalibrationReport:
    """What `recalibrate` did.

    Attributes:
        recalibrated: Layers with the data's statistics, in the order in which they run.
        left: Batch normalizations, and other layers with running statistics, left as they were.
        passes: Passes over the data, most of them through a part of the model only.
        last_change: Largest difference, in the last pass, between what a layer held and what its
            input showed, in deviations.
        converged: Whether that is at most the tolerance.
        frames: Images in one pass, as they reach the first normalization.
    """

    recalibrated: tuple[RecalibratedLayer, ...]
    left: tuple[UntouchedLayer, ...]
    passes: int
    last_change: float
    converged: bool
    frames: int

    def as_dict(self) -> dict[str, Any]:
        """Return the report in a form that JSON can hold."""
        return asdict(self)


def recalibrate(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    forward: Forward | None = None,
    max_sweeps: int = DEFAULT_MAX_SWEEPS,
    tolerance: float = DEFAULT_TOLERANCE,
    progress: Callable[[int, int], None] | None = None,
) -> RecalibrationReport:
    """Set running means and variances to those of all the data at the model's present weights.

    The result does not depend, but for rounding, on how the data is split into batches, nor on the
    statistics before. Variances are population variances (nn.BatchNorm2d averages unbiased ones). A
    layer that runs several times in a forward pass gets the moments of all its inputs. BatchNorm1d
    to 3d, SyncBatchNorm, the layers of `convert_batchnorm` and timm's BatchNormAct2d are done.

    Cost: a pass for each layer, ended at that layer, and two whole ones, which is about half as
    many forward passes as there are layers. Give decoded frames, a few hundred at most.

    Side effects: `running_mean` and `running_var`, written at the very end. All else is as before:
    `num_batches_tracked`, modes, hooks, gradients, windows, torch's random state. If anything
    raises, nothing is written. In a distributed job, run it in one process and broadcast.

    Args:
        model: The model, not wrapped for several devices.
        loader: Batches, the same frames in every pass, in any order and of any sizes. A batch is
            a tensor or a tuple of positional arguments. Tensors in it, also inside lists and dicts,
            are moved to the model's device.
        forward: How to run the model on a batch that is anything else, for example
            `lambda model, batch: model(batch[0])` for pairs of frames and targets. It is left in
            the middle where the rest of the model does not matter.
        max_sweeps: Most rounds over the layers. One is enough unless a layer's input depends on
            its own output.
        tolerance: Largest difference, in deviations, that counts as none: of a mean, and of a
            deviation in parts of itself.
        progress: Called after each pass with the passes done and the passes expected (more if
            another sweep turns out to be needed). What it raises stops the work.

    Returns:
        The report; `converged` tells whether a last pass confirmed every layer.

    Raises:
        OptionError: An option is out of range, a batch needs `forward`, the loader is empty, or
            it does not repeat its frames in a second pass, as a generator does not.
        RecalibrationError: The statistics of a layer's input are not finite, a layer saw one value
            a channel only, or no batch normalization ran.
    """
    if max_sweeps < 1:
        raise OptionError(f"max_sweeps must be at least 1, got {max_sweeps}")
    if not tolerance >= 0:
        raise OptionError(f"tolerance must not be negative, got {tolerance}")
    layers, left = _layers(model)
    if not layers:
        return RecalibrationReport((), tuple(left), 0, 0.0, converged=True, frames=0)
    work = _Work(model, loader, forward or run_on_positional, layers, progress)
    with left_as_found(model), torch.no_grad(), _without_compilation():
        model.eval()
        for sweep in range(max_sweeps + 1):
            seen = work.run_pass(layers)
            stale = _stale(layers, seen, tolerance)
            last = not stale or sweep == max_sweeps
            work.report_progress(to_come=0 if last else len(stale))
            if last:
                break
            _sweep(work, seen, stale)
        last_change = max(_difference(layers[name], part) for name, part in seen.statistics.items())
        new = {name: _cloned(_running(layers[name])) for name in seen.statistics}
    # The block above has put the old statistics back, so that an error in it changes nothing.
    changes = {name: _write(layers[name], statistics) for name, statistics in new.items()}
    recalibrated = tuple(
        RecalibratedLayer(name, seen.statistics[name].positions, change)
        for name, change in changes.items()
    )
    idle = tuple(UntouchedLayer(name, "it did not run") for name in layers if name not in new)
    converged = last_change <= tolerance
    return RecalibrationReport(
        recalibrated, left + idle, work.passes, last_change, converged, seen.frames
    )


def _layers(model: nn.Module) -> tuple[dict[str, _BatchNorm], tuple[UntouchedLayer, ...]]:
    """Return the layers to recalibrate by name, and those that cannot be."""
    layers: dict[str, _BatchNorm] = {}
    left: list[UntouchedLayer] = []
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm):
            reason = _unfit(module)
            if reason is None:
                layers[name] = module
            else:
                left.append(UntouchedLayer(name, reason))
        elif isinstance(getattr(module, "running_mean", None), Tensor):
            known = other_normalization(name, module)
            kind = type(module).__name__
            reason = known.reason if known else f"{kind} is no batch normalization of torch"
            left.append(UntouchedLayer(name, reason))
    return layers, tuple(left)


def _unfit(norm: _BatchNorm) -> str | None:
    """Say why the input of `norm` is not what its running statistics describe, or None."""
    if norm.running_mean is None:
        return "it tracks no running statistics; what follows it depends on how batches are split"
    known = isinstance(norm, SubstituteBatchNorm2d) or has_fused_tail(norm)
    if not known and type(norm).forward not in _FORWARDS_OF_TORCH:
        return f"{type(norm).__name__} has a forward pass of its own"
    return None


class _Work:
    """What all passes have in common, and how many there were."""

    def __init__(
        self,
        model: nn.Module,
        loader: Iterable[Any],
        forward: Forward,
        layers: dict[str, _BatchNorm],
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.layers = layers
        self.passes = 0
        self._model = model
        self._loader = loader
        self._forward = forward
        self._progress = progress
        self._frames = 0

    def run_pass(self, measured: Iterable[str], *, stop_at: str | None = None) -> Pass:
        """Run a pass over the data and check that it had the same frames as the first one."""
        seen = run_pass(
            self._model, self._loader, self._forward, self.layers, measured, stop_at=stop_at
        )
        self.passes += 1
        if self.passes == 1:
            _check_first(seen)
            self._frames = seen.frames
        else:
            _check_repeated(seen, self._frames)
        return seen

    def report_progress(self, *, to_come: int) -> None:
        if self._progress is not None:
            self._progress(self.passes, self.passes + to_come)


def _stale(layers: dict[str, _BatchNorm], seen: Pass, tolerance: float) -> list[str]:
    """Name the layers from the first one on whose statistics are not what its input showed.

    The later ones got inputs that will change, so what they showed is of no use.
    """
    order = list(seen.statistics)
    for index, name in enumerate(order):
        if not _difference(layers[name], seen.statistics[name]) <= tolerance:
            return order[index:]
    return []


def _sweep(work: _Work, seen: Pass, stale: list[str]) -> None:
    """Write the stale layers in turn, each after a pass with those before it written.

    Args:
        work: The work.
        seen: The pass that showed them to be stale; it is right for the first of them.
        stale: The layers in the order in which they run.
    """
    for done, name in enumerate(stale):
        if done > 0:
            stop_at = name if seen.runs_once(name) else None
            found = work.run_pass([name], stop_at=stop_at).statistics.get(name)
            work.report_progress(to_come=len(stale) - done)
        else:
            found = seen.statistics[name]
        if found is not None:
            norm = work.layers[name]
            _write(norm, _usable(name, norm, found))


def _check_first(seen: Pass) -> None:
    if not seen.runs:
        raise OptionError("the loader is empty: give at least one batch")
    if not seen.statistics:
        raise RecalibrationError("none of the model's batch normalizations ran on the batches")


def _check_repeated(seen: Pass, frames: int) -> None:
    if not seen.runs:
        raise OptionError(
            "the loader is exhausted after one pass: give a list or a DataLoader, which can be "
            "gone through again, in place of a generator"
        )
    if seen.frames != frames:
        raise OptionError(
            f"the loader does not repeat its frames: {frames} in the first pass and {seen.frames} "
            "in a later one; every pass needs the same"
        )


def _running(norm: _BatchNorm) -> RunningStatistics:
    # They are there: layers without them are left out from the start.
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return RunningStatistics(norm.running_mean, norm.running_var)


def _cloned(statistics: RunningStatistics) -> RunningStatistics:
    return RunningStatistics(statistics.mean.clone(), statistics.variance.clone())


def _rounded(norm: _BatchNorm, found: "BatchStatistics") -> RunningStatistics:
    """Return the statistics in the type of the buffers that are to hold them."""
    held = _running(norm)
    return RunningStatistics(found.mean.to(held.mean.dtype), found.variance.to(held.variance.dtype))


def _difference(norm: _BatchNorm, found: "BatchStatistics") -> float:
    """Return how far what `norm` holds is from what its input showed, in deviations."""
    return change_in_deviations(_running(norm), _rounded(norm, found), norm.eps)


def _usable(name: str, norm: _BatchNorm, found: "BatchStatistics") -> RunningStatistics:
    """Return what `norm` is to hold.

    Raises:
        RecalibrationError: It is not finite, or there was one value only.
    """
    if found.positions == 1:
        raise RecalibrationError(
            f"{name}: one value a channel has no variance; give more than one frame"
        )
    new = _rounded(norm, found)
    if not bool((new.mean.isfinite() & new.variance.isfinite()).all()):
        raise RecalibrationError(
            f"{name}: the statistics of its input are not finite in {new.mean.dtype}; look for "
            "frames or weights that are not finite or too large"
        )
    return new


def _write(norm: _BatchNorm, new: RunningStatistics) -> float:
    """Write the statistics and return how far they moved, in deviations."""
    held = _running(norm)
    change = change_in_deviations(held, new, norm.eps)
    held.mean.copy_(new.mean)
    held.variance.copy_(new.variance)
    return change


def _without_compilation() -> AbstractContextManager[None]:
    """Return a context in which torch.compile's code is not used: it runs no hook added later."""
    # A compiled model has imported it already; importing it for the others takes seconds.
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    stance: AbstractContextManager[None] = torch.compiler.set_stance("force_eager")
    return stance
