"""Rules for the sources of the room and for what its layers may hold on to."""

import re
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import norm
from norm import CrossIterationBatchNorm2d, convert_batchnorm
from norm.conversion import Kind
from norm.recomputation import KEPT_FORWARD_PASSES, RecentNormalizers
from norm.substitute import SubstituteBatchNorm2d

SOURCES = sorted(Path(norm.__file__).parent.glob("**/*.py"))
CHANNELS = 4
VARIANTS: dict[str, tuple[Kind, dict[str, Any]]] = {
    "bn": ("bn", {}),
    "frozen": ("frozen", {}),
    "gn": ("gn", {}),
    "brn": ("brn", {"total_steps": 8}),
    "ring": ("cbn", {"window_size": 4, "burn_in_steps": 2}),
    "paper's ring": ("cbn", {"window_size": 4, "gradient": "paper", "variance": "paper"}),
    "sampled ring": ("cbn", {"window_size": 4, "slope_positions": 9}),
    "factored ring": ("cbn", {"window_size": 4, "slope_rank": 1}),
    "bfloat16 ring": ("cbn", {"window_size": 4, "history_dtype": torch.bfloat16}),
    "exponential": ("cbn", {"window_size": 4, "burn_in_steps": 2, "history": "exponential"}),
}


def converted(variant: str) -> nn.Module:
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Conv2d(2, CHANNELS, 3, padding=1, bias=False),
        nn.BatchNorm2d(CHANNELS),
        nn.ReLU(),
        nn.Conv2d(CHANNELS, CHANNELS, 3, stride=2, groups=2),
        nn.BatchNorm2d(CHANNELS),
    )
    kind, options = VARIANTS[variant]
    model, report = convert_batchnorm(plain, torch.zeros(2, 2, 8, 8), kind=kind, **options)
    assert len(report.converted) == 2
    return model


def train(model: nn.Module, steps: int, dtype: torch.dtype = torch.float32) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for step in range(steps):
        x = torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(x.to(dtype)).float().square().mean().backward()
        optimizer.step()


def floating_buffers(layer: nn.Module) -> dict[str, Tensor]:
    return {name: b for name, b in layer.named_buffers() if b.is_floating_point()}


def normalizations(model: nn.Module) -> list[nn.Module]:
    kinds = (nn.BatchNorm2d, nn.GroupNorm)
    found: list[nn.Module] = [module for module in model.modules() if isinstance(module, kinds)]
    assert len(found) == 2
    return found


def held_tensors(value: object, seen: dict[int, object]) -> Iterator[Tensor]:
    """Yield tensors reachable from `value` through attributes and containers, not yet in `seen`.

    Parameters and buffers of modules are not followed: they are what a tensor may be. What was seen
    is kept, because the id of an object that is gone is given to another one.
    """
    if id(value) in seen or isinstance(value, (RecentNormalizers, str, bytes, int, float, type)):
        return
    seen[id(value)] = value
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for part in (*value.keys(), *value.values()):
            yield from held_tensors(part, seen)
    elif isinstance(value, (list, tuple, set, frozenset, deque)):
        for part in value:
            yield from held_tensors(part, seen)
    elif isinstance(value, nn.Module):
        own = {k: v for k, v in vars(value).items() if k not in ("_parameters", "_buffers")}
        yield from held_tensors(own, seen)
    elif hasattr(value, "__dict__"):
        yield from held_tensors(vars(value), seen)


def test_no_source_chooses_a_device() -> None:
    assert len(SOURCES) > 10
    pattern = re.compile(r"\.cuda\(|device=['\"]cuda")
    assert [path.name for path in SOURCES if pattern.search(path.read_text())] == []


def test_importing_the_room_loads_torch_alone() -> None:
    program = (
        "import sys, torch; before = set(sys.modules); import norm;"
        "print(*sorted({m.partition('.')[0] for m in set(sys.modules) - before}))"
    )
    answer = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        check=True,
        text=True,
        cwd=Path(norm.__file__).parents[1],
    )
    loaded = set(answer.stdout.split())
    assert "norm" in loaded
    # What torch loads for itself, NumPy among it, was there before.
    assert loaded - sys.stdlib_module_names == {"norm"}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_tensor_a_layer_holds_is_a_parameter_or_a_buffer(variant: str) -> None:
    model = converted(variant)
    # More passes than a layer may keep normalizers for.
    train(model, KEPT_FORWARD_PASSES + 3)
    for layer in normalizations(model):
        assert list(held_tensors(layer, {})) == []


def test_a_tensor_that_is_neither_would_be_found() -> None:
    model = converted("ring")
    layer = normalizations(model)[0]
    vars(layer)["_binding"].history = {"past": [(torch.ones(3),)]}
    assert [tensor.shape for tensor in held_tensors(layer, {})] == [(3,)]


@pytest.mark.parametrize("variant", VARIANTS)
def test_recent_normalizers_are_few_and_five_numbers_a_channel(variant: str) -> None:
    model = converted(variant)
    train(model, KEPT_FORWARD_PASSES + 3)
    kind, _ = VARIANTS[variant]
    for layer in normalizations(model):
        if not isinstance(layer, SubstituteBatchNorm2d):
            continue
        entries = list(layer._recent._entries)
        assert len(entries) == (0 if kind == "frozen" else KEPT_FORWARD_PASSES)
        for kept in entries:
            entry = kept if isinstance(kept, tuple) else kept.unpack()
            tensors = [t for part in entry for t in part if isinstance(t, Tensor)]
            assert {t.shape for t in tensors} == {(CHANNELS,)}
            assert not any(t.requires_grad for t in tensors)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_floating_buffer_is_float32_after_training_under_bfloat16_autocast(
    variant: str,
) -> None:
    model = converted(variant)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        train(model, 5)
    stated = {"window.variance_slopes"} if variant == "bfloat16 ring" else set()
    for layer in normalizations(model):
        buffers = floating_buffers(layer)
        others = {name for name, b in buffers.items() if b.dtype != torch.float32}
        assert others == stated
        assert all(buffer.isfinite().all() for buffer in buffers.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("variant", VARIANTS)
def test_windows_stay_float32_in_a_16_bit_model_and_running_statistics_follow_it(
    variant: str, dtype: torch.dtype
) -> None:
    """Running statistics take the model's type, as nn.BatchNorm2d's do."""
    model = converted(variant)
    train(model, 2)
    model.to(dtype)
    train(model, 5, dtype)
    for layer in normalizations(model):
        for name, buffer in floating_buffers(layer).items():
            expected = torch.float32 if name.startswith("window.") else dtype
            if variant == "bfloat16 ring" and name == "window.variance_slopes":
                expected = torch.bfloat16
            assert buffer.dtype == expected, name
            assert buffer.isfinite().all(), name
        if isinstance(layer, CrossIterationBatchNorm2d):
            assert layer.window is not None
            assert any(name.startswith("window.") for name in floating_buffers(layer))
