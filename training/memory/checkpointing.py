"""Activation checkpointing of any network: which modules are computed again is found by running it.

Chen et al., *Training Deep Nets with Sublinear Memory Cost*, arXiv 1604.06174: keep the inputs of
segments, compute what lies between them again in the backward pass.  The segments here are the
network's own modules.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from models import Preprocessing
from norm import CrossIterationBatchNorm2d
from training.config import RunConfig

# What a module keeps is compared on a frame of so many strides a side, large enough that
# activations outweigh weights.
SMALL_FRAME_STRIDES = 8


@dataclass
class SavedBytes:
    """What one module keeps for the backward pass.

    Attributes:
        name: As in ``named_modules``.
        saved_bytes: Of tensors that autograd saved within its forward pass, parameters aside.
        input_bytes: Of its tensor arguments, which checkpointing it would keep instead.
        calls: How often it ran.
        children: Modules within it that ran, in the order in which they did.
    """

    name: str
    saved_bytes: int = 0
    input_bytes: int = 0
    calls: int = 0
    children: list["SavedBytes"] = field(default_factory=list)


def record_saved_bytes(network: nn.Module, run: Callable[[], Any]) -> SavedBytes:
    """Return what each module of a network keeps for the backward pass while ``run`` runs it.

    A tensor that several operators save counts once, for the module that saved it first.
    """
    root = SavedBytes("")
    stack = [root]
    parameters = {id(parameter) for parameter in network.parameters()}
    # The storages are held, so that no address is given to a second one meanwhile.
    seen: dict[int, torch.UntypedStorage] = {}

    def save(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        key = storage._cdata  # noqa: SLF001 - the address that all views of a storage share.
        if id(tensor) not in parameters and key not in seen:
            seen[key] = storage
            for entry in stack:
                entry.saved_bytes += storage.nbytes()
        return tensor

    def enter(name: str) -> Callable[[nn.Module, Any], None]:
        def hook(_: nn.Module, arguments: Any) -> None:
            entry = SavedBytes(name, calls=1)
            entry.input_bytes = sum(
                leaf.untyped_storage().nbytes()
                for leaf in tree_leaves(arguments)
                if isinstance(leaf, Tensor)
            )
            stack[-1].children.append(entry)
            stack.append(entry)

        return hook

    def leave(_: nn.Module, __: Any, ___: Any) -> None:
        stack.pop()

    handles = []
    for name, module in network.named_modules():
        handles.append(module.register_forward_pre_hook(enter(name)))
        handles.append(module.register_forward_hook(leave))
    try:
        with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
            run()
    finally:
        for handle in handles:
            handle.remove()
    return root


def choose_modules(root: SavedBytes) -> tuple[str, ...]:
    """Return the modules to compute again for the lowest peak, in the order in which they ran.

    A module is taken whole if it saves no more than a bound, else its children are looked at; what
    belongs to no module taken stays saved.  The peak of a choice is all that stays saved, the
    inputs of the modules taken, and the largest of them, which is saved again while its backward
    pass runs.  Every bound that makes a difference is tried.
    """
    once = _run_once(root)
    bounds = sorted({entry.saved_bytes for entry in _all(root) if entry.saved_bytes})
    best: tuple[int, list[SavedBytes]] = (root.saved_bytes, [])
    for bound in bounds:
        taken = _taken(root, bound, once)
        if not taken:
            continue
        kept = root.saved_bytes - sum(entry.saved_bytes for entry in taken)
        inputs = sum(entry.input_bytes for entry in taken)
        peak = kept + inputs + max(entry.saved_bytes for entry in taken)
        if peak < best[0]:
            best = (peak, taken)
    return tuple(entry.name for entry in best[1])


def _all(root: SavedBytes) -> Iterator[SavedBytes]:
    yield root
    for child in root.children:
        yield from _all(child)


def _run_once(root: SavedBytes) -> set[str]:
    """Return the modules that ran once: one that runs twice would count for two segments."""
    counts: dict[str, int] = {}
    for entry in _all(root):
        counts[entry.name] = counts.get(entry.name, 0) + 1
    return {name for name, count in counts.items() if count == 1}


def _taken(entry: SavedBytes, bound: int, once: set[str]) -> list[SavedBytes]:
    # A module without modules in it is one operator: computing it again saves its output alone.
    taken = []
    for child in entry.children:
        worthwhile = child.name in once and child.children and child.saved_bytes > child.input_bytes
        if worthwhile and child.saved_bytes <= bound:
            taken.append(child)
        else:
            taken += _taken(child, bound, once)
    return taken


@contextmanager
def checkpointed(network: nn.Module, names: tuple[str, ...]) -> Iterator[None]:
    """Compute the named modules again in the backward pass of what is run inside.

    The network's modules, parameters and their names stay as they are; hooks of a named module run
    once, those of modules within it again.  The backward pass may run inside or later.
    """
    modules = [network.get_submodule(name) for name in names]
    for module in modules:
        # An attribute of the instance hides the class's method, and is gone after the forward pass,
        # so that nobody copies or saves it.
        module.forward = _again_in_backward(module)
    try:
        yield
    finally:
        for module in modules:
            del module.forward


def _again_in_backward(module: nn.Module) -> Callable[..., Any]:
    forward = module.forward

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _statistics_at_rest(module)

    def run(*arguments: Any, **named: Any) -> Any:
        return checkpoint(forward, *arguments, use_reentrant=False, context_fn=contexts, **named)

    return run


@contextmanager
def _statistics_at_rest(module: nn.Module) -> Iterator[None]:
    """Let torch's own norms, and what is made of them, move no running statistics of theirs.

    Our own know by themselves when they are computed again (``norm/recomputation.py``).
    """
    layers = [layer for layer in module.modules() if isinstance(layer, _NormBase)]
    own = [dict(layer.named_buffers(recurse=False)) for layer in layers]
    for layer, buffers in zip(layers, own, strict=True):
        for name, buffer in buffers.items():
            setattr(layer, name, buffer.clone())
    try:
        yield
    finally:
        for layer, buffers in zip(layers, own, strict=True):
            for name, buffer in buffers.items():
                setattr(layer, name, buffer)


def recomputed_modules(
    config: RunConfig, network: nn.Module, preprocessing: Preprocessing
) -> tuple[str, ...]:
    """Return the modules that are computed again, found on a copy by running a small frame."""
    if not config.memory.activation_checkpointing:
        return ()
    # A detector in training mode asks for boxes; nearly all it keeps is its pyramid's.
    prefix = "backbone." if config.model.task == "detection" else ""
    traced = network.get_submodule(prefix.rstrip("."))
    with torch.random.fork_rng([]):
        copied = copy.deepcopy(traced).cpu().train()
        for layer in copied.modules():
            if isinstance(layer, CrossIterationBatchNorm2d):
                # Each rank looks when it comes to it, and would wait for the others.
                layer.ranks = "separate"
        side_px = SMALL_FRAME_STRIDES * preprocessing.stride_px
        images = torch.randn(1, preprocessing.in_channels, side_px, side_px)
        chosen = choose_modules(record_saved_bytes(copied, lambda: copied(images)))
    return tuple(prefix + name for name in chosen)
